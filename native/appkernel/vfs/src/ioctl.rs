//! Requests of ioctl(2) that several kinds of files answer.

use drupe_appkernel_abi::{Errno, Result};

pub const FIONREAD: u32 = 0x541B;
pub const FIONBIO: u32 = 0x5421;
pub const FIOCLEX: u32 = 0x5451;
pub const FIONCLEX: u32 = 0x5450;
pub const FIOASYNC: u32 = 0x5452;

/// FIONREAD with this many bytes; ENOTTY for every other request.
pub fn answer_readable(request: u32, bytes: usize, data: &mut Vec<u8>) -> Result<i64> {
    if request != FIONREAD {
        return Err(Errno::NOTTY);
    }
    put_i32(data, i32::try_from(bytes).unwrap_or(i32::MAX));
    Ok(0)
}

/// Answer with one int.
pub fn put_i32(data: &mut Vec<u8>, value: i32) {
    data.clear();
    data.extend_from_slice(&value.to_ne_bytes());
}

/// The int that the caller gave. EFAULT if there is none.
pub fn get_i32(data: &[u8]) -> Result<i32> {
    let bytes = data.get(..4).ok_or(Errno::FAULT)?;
    Ok(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}
