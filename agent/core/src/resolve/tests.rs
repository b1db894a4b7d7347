//! What resolve decides, case by case.
