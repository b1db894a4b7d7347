//! Ejection, return and forgetting.
