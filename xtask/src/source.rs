//! Reads our Rust sources as far as tidy and measure need it: code apart from comments and strings, modules, imports,
//! functions. A lexer and a brace counter, not a parser: it knows our own formatted code, not all of Rust.

mod cycles;
mod file;
mod functions;
mod imports;
mod lexer;
mod modules;

pub use cycles::largest_cycle;
pub use file::{File, files};
pub use functions::{Function, functions};
pub use imports::{Import, imports};
pub use lexer::Text;
pub use modules::{Crate, Module, crates};
