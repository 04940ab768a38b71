//! Integration tests, snapshots and fixtures.
