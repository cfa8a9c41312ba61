//! Scenarios across the programs.
