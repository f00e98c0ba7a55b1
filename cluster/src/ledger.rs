//! Money. Today the amounts; budgets build on them.

pub mod money;
