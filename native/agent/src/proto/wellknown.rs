//! Messages of google.protobuf. Written by scripts/gen-protobuf.py.

crate::wire::messages! {
    Any {
        type_url: String, one string = 1;
        value: Vec<u8>, one bytes = 2;
    }
    Timestamp {
        seconds: i64, one int64 = 1;
        nanos: i32, one int32 = 2;
    }
    Empty {
    }
}
