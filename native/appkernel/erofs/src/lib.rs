//! Reader of EROFS images: lookup, attributes, directories, content and extended attributes straight from the mapped bytes.
//!
//! The image is not trusted: every offset is checked, and what makes no sense is EUCLEAN, never a panic. Compressed images
//! are refused when opened or, for single files, with EOPNOTSUPP.
//!
//! Format: Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h.

#![forbid(unsafe_code)]

mod directory;
mod fs;
mod image;
mod inode;
mod xattr;

pub use fs::{Erofs, ImageFile};
pub use image::Image;
pub use inode::{Inode, Layout};
