//! The same steps on the host's Linux and on ours, and the answers compared. Random steps come from fixed seeds.

mod events;
mod host;
mod notices;
mod ours;
mod pipes;
mod sockets;
mod terminals;
mod tree;
mod trees;
mod walks;
mod world;
