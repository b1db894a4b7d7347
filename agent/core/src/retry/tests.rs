//! The table, the delays and the budget.
