//! Extended attributes: those after an inode, and those that inodes share.

use drupe_appkernel_abi::{Errno, Result};

use crate::image::{Fields, Image};
use crate::inode::Inode;

const HEADER_BYTES: usize = 12;

/// Full name and value.
type Attribute = (Vec<u8>, Vec<u8>);

/// All attributes with their full names. EUCLEAN.
pub(crate) fn all(image: &Image, inode: &Inode) -> Result<Vec<Attribute>> {
    let (offset, length) = inode.xattrs;
    if length == 0 {
        return Ok(Vec::new());
    }
    let body = image.slice(offset, length)?;
    let shared = usize::from(Fields(body).u8(4));
    let mut at = HEADER_BYTES + shared * 4;
    let mut found = Vec::new();
    for index in 0..shared {
        let id = Fields(body.get(..at).ok_or(Errno::UCLEAN)?).u32(HEADER_BYTES + index * 4);
        found.push(entry(image, image.shared_xattr_offset(id))?.0);
    }
    while at + 4 <= length && body[at..at + 4] != [0; 4] {
        let (attribute, size) = entry(image, offset + at as u64)?;
        found.push(attribute);
        at += size.next_multiple_of(4);
    }
    Ok(found)
}

/// ((name, value), bytes that it takes).
fn entry(image: &Image, offset: u64) -> Result<(Attribute, usize)> {
    let head = Fields(image.slice(offset, 4)?);
    let (name_bytes, value_bytes) = (usize::from(head.u8(0)), usize::from(head.u16(2)));
    let body = image.slice(offset + 4, name_bytes + value_bytes)?;
    let mut name = prefix(head.u8(1))?.to_vec();
    name.extend_from_slice(&body[..name_bytes]);
    Ok(((name, body[name_bytes..].to_vec()), 4 + name_bytes + value_bytes))
}

fn prefix(index: u8) -> Result<&'static [u8]> {
    match index {
        1 => Ok(b"user."),
        2 => Ok(b"system.posix_acl_access"),
        3 => Ok(b"system.posix_acl_default"),
        4 => Ok(b"trusted."),
        6 => Ok(b"security."),
        _ => Err(Errno::UCLEAN),
    }
}
