//! Messages of drupe.rpc.ttrpc. Written by scripts/gen-protobuf.py.

crate::wire::messages! {
    KeyValue {
        key: String, one string = 1;
        value: String, one string = 2;
    }
    Request {
        service: String, one string = 1;
        method: String, one string = 2;
        payload: Vec<u8>, one bytes = 3;
        timeout_nano: i64, one int64 = 4;
        metadata: Vec<KeyValue>, many message = 5;
    }
    Status {
        code: i32, one int32 = 1;
        message: String, one string = 2;
        details: Vec<super::wellknown::Any>, many message = 3;
    }
    Response {
        status: Option<Status>, opt message = 1;
        payload: Vec<u8>, one bytes = 2;
    }
}
