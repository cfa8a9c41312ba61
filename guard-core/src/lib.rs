//! All logic of the voice-guard programs.
