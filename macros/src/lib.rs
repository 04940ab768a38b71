//! The pattern! macro.
