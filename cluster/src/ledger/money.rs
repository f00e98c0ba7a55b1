//! Amounts of money as integers. No float touches money.
