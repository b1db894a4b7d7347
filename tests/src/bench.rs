//! What the mesh costs, against the plain path of the same run: the loads, the measuring, the table.
//!
//! `cargo xtask bench` (see [`run::run`]). A client and a server pod on two nodes are enrolled; a second pair on the same
//! nodes is not, and is the plain path. Each measurement is one run of a load on one pair, by processes of their own in
//! the pods ([`client`], [`server`]); the pairs alternate. What a row must reach is in [`rows`].

pub mod adoption;
mod bulk;
pub mod client;
mod facts;
pub mod measure;
mod memory;
mod mesh;
mod page;
pub mod rows;
pub mod run;
pub mod server;
mod usage;

/// A request as small as a real one: 100 B.
const REQUEST: &[u8; 100] = b"GET /stock/4711 HTTP/1.1\r\nHost: server\r\nAccept: */*\r\nUser-Agent: adit-bench/1.0 (small requests)\r\n\r\n";
/// Its answer: 200 B.
const ANSWER: &[u8; 200] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 104\r\nServer: adit-bench/1.0\r\n\r\n\
{\"item\":4711,\"name\":\"a small thing of no great use\",\"in-stock\":17,\"reserved\":3,\"updated\":\"2026-01-01\"}\n\n";
/// Where the server answers requests.
pub const REQUESTS: u16 = 9001;
/// Where it takes and gives bulk.
pub const BULK: u16 = 9002;
