//! Protobuf messages from a table of their fields: prost does the encoding, without its derive macro, which a static
//! build cannot load.

pub use prost::bytes::{Buf, BufMut};
pub use prost::encoding::{self, skip_field, DecodeContext, WireType};
pub use prost::{DecodeError, Message};

/// `Name { field: type, shape codec = number; … }` as structs that are `prost::Message`. shape: one (a scalar), opt (a
/// message, or a scalar of a oneof), many, map. codec: a module of `prost::encoding`.
macro_rules! messages {
    ($($name:ident { $($field:ident: $kind:ty, $shape:ident $codec:ident = $tag:literal;)* })*) => {
        #[allow(unused_imports)]
        use crate::wire::{encode, length, merge, skip_field, Buf, BufMut, DecodeContext, DecodeError, Message, WireType};
        $(
            #[derive(Clone, Debug, Default, PartialEq)]
            pub struct $name { $(pub $field: $kind,)* }

            #[allow(unused_variables)]
            impl Message for $name {
                fn encode_raw(&self, buffer: &mut impl BufMut) {
                    $(encode!($shape $codec $tag, &self.$field, buffer);)*
                }
                fn merge_field(
                    &mut self, tag: u32, wire: WireType, buffer: &mut impl Buf, context: DecodeContext,
                ) -> Result<(), DecodeError> {
                    match tag {
                        $($tag => merge!($shape $codec, &mut self.$field, wire, buffer, context),)*
                        _ => skip_field(wire, tag, buffer, context),
                    }
                }
                fn encoded_len(&self) -> usize {
                    0 $(+ length!($shape $codec $tag, &self.$field))*
                }
                fn clear(&mut self) {
                    *self = Self::default();
                }
            }
        )*
    };
}

macro_rules! encode {
    (one $codec:ident $tag:literal, $value:expr, $buffer:expr) => {
        if crate::wire::is_set($value) {
            crate::wire::encoding::$codec::encode($tag, $value, $buffer)
        }
    };
    (opt $codec:ident $tag:literal, $value:expr, $buffer:expr) => {
        if let Some(value) = $value {
            crate::wire::encoding::$codec::encode($tag, value, $buffer)
        }
    };
    (many $codec:ident $tag:literal, $value:expr, $buffer:expr) => {
        crate::wire::encoding::$codec::encode_repeated($tag, $value, $buffer)
    };
    (map $codec:ident $tag:literal, $value:expr, $buffer:expr) => {{
        use crate::wire::encoding::{btree_map, $codec::encode, $codec::encoded_len};
        btree_map::encode(encode, encoded_len, encode, encoded_len, $tag, $value, $buffer)
    }};
}

macro_rules! merge {
    (opt $codec:ident, $value:expr, $wire:expr, $buffer:expr, $context:expr) => {
        crate::wire::encoding::$codec::merge($wire, $value.get_or_insert_with(Default::default), $buffer, $context)
    };
    (one $codec:ident, $value:expr, $wire:expr, $buffer:expr, $context:expr) => {
        crate::wire::encoding::$codec::merge($wire, $value, $buffer, $context)
    };
    (many $codec:ident, $value:expr, $wire:expr, $buffer:expr, $context:expr) => {
        crate::wire::encoding::$codec::merge_repeated($wire, $value, $buffer, $context)
    };
    (map $codec:ident, $value:expr, $wire:expr, $buffer:expr, $context:expr) => {{
        use crate::wire::encoding::{btree_map, $codec::merge};
        btree_map::merge(merge, merge, $value, $buffer, $context)
    }};
}

macro_rules! length {
    (one $codec:ident $tag:literal, $value:expr) => {
        if crate::wire::is_set($value) {
            crate::wire::encoding::$codec::encoded_len($tag, $value)
        } else {
            0
        }
    };
    (opt $codec:ident $tag:literal, $value:expr) => {
        $value.as_ref().map_or(0, |value| crate::wire::encoding::$codec::encoded_len($tag, value))
    };
    (many $codec:ident $tag:literal, $value:expr) => {
        crate::wire::encoding::$codec::encoded_len_repeated($tag, $value)
    };
    (map $codec:ident $tag:literal, $value:expr) => {{
        use crate::wire::encoding::{btree_map, $codec::encoded_len};
        btree_map::encoded_len(encoded_len, encoded_len, $tag, $value)
    }};
}

/// proto3 leaves out what has its type's default.
pub fn is_set<T: Default + PartialEq>(value: &T) -> bool {
    *value != T::default()
}

pub(crate) use {encode, length, merge, messages};
