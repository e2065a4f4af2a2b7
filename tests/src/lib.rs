//! What the black-box tests and the lab stand on.

pub mod bed;
pub mod packet;
