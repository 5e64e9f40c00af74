//! Properties of what is compiled, over random clusters: against evaluators too simple to be wrong,
//! and after each single write.

mod changes;
mod common;
mod policy;
mod services;
