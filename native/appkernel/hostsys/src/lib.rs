//! The host, as the application kernel uses it.
