//! A package needs a library or a program; this one has benchmarks alone.
