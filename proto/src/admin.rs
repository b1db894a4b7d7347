//! JSON types of the admin API.
