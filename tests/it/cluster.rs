//! On a real Kubernetes cluster. `cargo xtask test --part cluster` runs these alone.

mod kept;
mod machine;
