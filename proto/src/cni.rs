//! The CNI socket.
