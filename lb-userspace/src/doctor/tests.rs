//! Each check, found and not found.
