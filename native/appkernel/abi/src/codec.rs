//! Structures as bytes, for what one kernel writes and another of the same version reads: numbers little-endian, lists with
//! their length before them. Reading never believes a length, and never panics.

/// What is left to be read.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

/// Something that can be written and read. `take` answers None for what `put` never writes.
pub trait Coded: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(from: &mut Reader<'_>) -> Option<Self>;
}

/// All of the bytes as one value; None: they are none, or there are more.
pub fn decode<T: Coded>(bytes: &[u8]) -> Option<T> {
    let mut from = Reader::new(bytes);
    T::take(&mut from).filter(|_| from.is_empty())
}

pub fn encode<T: Coded>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value.put(&mut out);
    out
}

/// A sum that tells damage (FNV-1a), not malice.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Coded for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn take(from: &mut Reader<'_>) -> Option<Self> {
                let bytes = from.bytes(size_of::<$number>())?;
                Some(<$number>::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64, i32, i64);

impl Coded for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push((*self).into());
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        match u8::take(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl<T: Coded> Coded for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        self.iter().for_each(|value| value.put(out));
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        match bool::take(from)? {
            true => T::take(from).map(Some),
            false => Some(None),
        }
    }
}

impl<T: Coded> Coded for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        self.iter().for_each(|value| value.put(out));
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let count = u64::take(from)?;
        // Nothing takes less than a byte.
        let mut list =
            Vec::with_capacity(usize::try_from(count).ok().filter(|count| *count <= from.0.len())?.min(4096));
        for _ in 0..count {
            list.push(T::take(from)?);
        }
        Some(list)
    }
}

impl<T: Coded, const N: usize> Coded for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|value| value.put(out));
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let list: Option<Vec<T>> = (0..N).map(|_| T::take(from)).collect();
        list?.try_into().ok()
    }
}

impl Coded for String {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_bytes().to_vec().put(out);
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        String::from_utf8(Vec::take(from)?).ok()
    }
}

macro_rules! tuples {
    ($(($($name:ident $at:tt),*)),*) => {$(
        impl<$($name: Coded),*> Coded for ($($name,)*) {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$at.put(out);)*
            }

            fn take(from: &mut Reader<'_>) -> Option<Self> {
                Some(($($name::take(from)?,)*))
            }
        }
    )*};
}
tuples!((A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3));

/// A structure whose fields are all `Coded`, in their order.
#[macro_export]
macro_rules! coded {
    ($(#[$about:meta])* $seen:vis struct $name:ident {
        $($(#[$field_about:meta])* $field_seen:vis $field:ident: $type:ty),* $(,)?
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug)]
        $seen struct $name {
            $($(#[$field_about])* $field_seen $field: $type),*
        }

        impl $crate::codec::Coded for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::codec::Coded::put(&self.$field, out);)*
            }

            fn take(from: &mut $crate::codec::Reader<'_>) -> Option<Self> {
                Some($name { $($field: $crate::codec::Coded::take(from)?),* })
            }
        }
    };
    ($(#[$about:meta])* $seen:vis enum $name:ident {
        $($(#[$variant_about:meta])* $variant:ident($type:ty) = $number:literal),* $(,)?
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug)]
        $seen enum $name {
            $($(#[$variant_about])* $variant($type)),*
        }

        impl $crate::codec::Coded for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant(value) => {
                        out.push($number);
                        $crate::codec::Coded::put(value, out);
                    })*
                }
            }

            fn take(from: &mut $crate::codec::Reader<'_>) -> Option<Self> {
                match <u8 as $crate::codec::Coded>::take(from)? {
                    $($number => $crate::codec::Coded::take(from).map($name::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    coded! {
        struct Inner {
            words: Vec<u64>,
            text: String,
        }
    }
    coded! {
        enum Either {
            Number(u32) = 0,
            Inside(Inner) = 7,
        }
    }

    fn all() -> Vec<(Either, Option<bool>)> {
        let inner = Inner { words: vec![1, u64::MAX], text: String::from("ü") };
        vec![(Either::Number(5), None), (Either::Inside(inner), Some(true))]
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = encode(&all());
        let read: Vec<(Either, Option<bool>)> = decode(&bytes).expect("it was written here");
        assert_eq!(format!("{read:?}"), format!("{:?}", all()));
    }

    #[test]
    fn every_cut_and_every_change_is_read_or_refused() {
        let bytes = encode(&all());
        for end in 0..bytes.len() {
            assert!(decode::<Vec<(Either, Option<bool>)>>(&bytes[..end]).is_none());
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _whatever: Option<Vec<(Either, Option<bool>)>> = decode(&changed);
            }
        }
        assert!(decode::<Vec<u64>>(&u64::MAX.to_le_bytes()).is_none());
    }
}
