//! The few protobuf messages that a shim reads and writes (https://protobuf.dev/programming-guides/encoding).

const LENGTH: u64 = 2;

/// Appends a field that is text or a message.
pub fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | LENGTH);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a field that is a number; one that is 0 is left out, as its absence says that.
pub fn put_number(out: &mut Vec<u8>, field: u64, number: u64) {
    if number != 0 {
        put_varint(out, field << 3);
        put_varint(out, number);
    }
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The texts of a message by the numbers of their fields; None: it is none.
pub fn texts(mut data: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let mut found = Vec::new();
    while !data.is_empty() {
        let key = take_varint(&mut data)?;
        match key & 7 {
            0 => {
                take_varint(&mut data)?;
            }
            1 => data = data.get(8..)?,
            5 => data = data.get(4..)?,
            LENGTH => {
                let size = usize::try_from(take_varint(&mut data)?).ok()?;
                found.push((key >> 3, data.get(..size)?));
                data = &data[size..];
            }
            _ => return None,
        }
    }
    Some(found)
}

fn take_varint(data: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let (byte, rest) = data.split_first()?;
        *data = rest;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut data = Vec::new();
        put_number(&mut data, 3, 300);
        put_bytes(&mut data, 1, b"id");
        put_bytes(&mut data, 200, &[7; 1000]);
        assert_eq!(texts(&data).unwrap(), [(1, &b"id"[..]), (200, &[7; 1000][..])]);
    }

    #[test]
    fn what_is_cut_is_no_message() {
        let mut data = Vec::new();
        put_bytes(&mut data, 1, b"identity");
        for size in 1..data.len() {
            assert!(texts(&data[..size]).is_none());
        }
        assert!(texts(&[0xff; 20]).is_none());
        assert!(texts(&[0x0b]).is_none());
    }
}
