//! Ancillary data: control messages of cmsg(3), as bytes.

use drupe_appkernel_abi::{Errno, Result};

pub const SOL_SOCKET: u32 = 1;
pub const SCM_RIGHTS: u32 = 1;
pub const SCM_CREDENTIALS: u32 = 2;

const HEADER_BYTES: usize = 16;

/// One control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlMessage<'a> {
    pub level: u32,
    pub kind: u32,
    pub data: &'a [u8],
}

/// All messages of a control buffer as sendmsg(2) gives it. EINVAL.
pub fn control_messages(mut bytes: &[u8]) -> Result<Vec<ControlMessage<'_>>> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let length = bytes.first_chunk::<8>().map_or(0, |length| u64::from_ne_bytes(*length));
        let length = usize::try_from(length).map_err(|_| Errno::INVAL)?;
        if length < HEADER_BYTES || length > bytes.len() {
            return Err(Errno::INVAL);
        }
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        found.push(ControlMessage { level: word(8), kind: word(12), data: &bytes[HEADER_BYTES..length] });
        bytes = &bytes[length.next_multiple_of(8).min(bytes.len())..];
    }
    Ok(found)
}

/// Append a message, if it fits into `room_bytes` together with what is there. False: MSG_CTRUNC.
pub fn push_control_message(out: &mut Vec<u8>, room_bytes: usize, message: ControlMessage<'_>) -> bool {
    let start = out.len().next_multiple_of(8);
    let length = HEADER_BYTES + message.data.len();
    if start + length > room_bytes {
        return false;
    }
    out.resize(start, 0);
    out.extend_from_slice(&(length as u64).to_ne_bytes());
    out.extend_from_slice(&message.level.to_ne_bytes());
    out.extend_from_slice(&message.kind.to_ne_bytes());
    out.extend_from_slice(message.data);
    true
}
