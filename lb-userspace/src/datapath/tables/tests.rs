//! The tables under a store that looks at the whole state after every elementary write.

mod adoption;
mod checked;
mod choose;
mod full;
mod pods;
mod random;
mod scene;
