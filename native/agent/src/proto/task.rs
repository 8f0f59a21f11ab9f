//! Messages of containerd.task.v3. Written by scripts/gen-protobuf.py.

crate::wire::messages! {
    CreateTaskRequest {
        id: String, one string = 1;
        bundle: String, one string = 2;
        rootfs: Vec<super::mount::Mount>, many message = 3;
        terminal: bool, one bool = 4;
        stdin: String, one string = 5;
        stdout: String, one string = 6;
        stderr: String, one string = 7;
        checkpoint: String, one string = 8;
        parent_checkpoint: String, one string = 9;
        options: Option<super::wellknown::Any>, opt message = 10;
    }
    CreateTaskResponse {
        pid: u32, one uint32 = 1;
    }
    DeleteRequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
    }
    DeleteResponse {
        pid: u32, one uint32 = 1;
        exit_status: u32, one uint32 = 2;
        exited_at: Option<super::wellknown::Timestamp>, opt message = 3;
    }
    ExecProcessRequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
        terminal: bool, one bool = 3;
        stdin: String, one string = 4;
        stdout: String, one string = 5;
        stderr: String, one string = 6;
        spec: Option<super::wellknown::Any>, opt message = 7;
    }
    ResizePtyRequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
        width: u32, one uint32 = 3;
        height: u32, one uint32 = 4;
    }
    StateRequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
    }
    StateResponse {
        id: String, one string = 1;
        bundle: String, one string = 2;
        pid: u32, one uint32 = 3;
        status: i32, one int32 = 4;
        stdin: String, one string = 5;
        stdout: String, one string = 6;
        stderr: String, one string = 7;
        terminal: bool, one bool = 8;
        exit_status: u32, one uint32 = 9;
        exited_at: Option<super::wellknown::Timestamp>, opt message = 10;
        exec_id: String, one string = 11;
    }
    KillRequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
        signal: u32, one uint32 = 3;
        all: bool, one bool = 4;
    }
    CloseIORequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
        stdin: bool, one bool = 3;
    }
    PidsRequest {
        id: String, one string = 1;
    }
    PidsResponse {
        processes: Vec<super::types::ProcessInfo>, many message = 1;
    }
    CheckpointTaskRequest {
        id: String, one string = 1;
        path: String, one string = 2;
        options: Option<super::wellknown::Any>, opt message = 3;
    }
    UpdateTaskRequest {
        id: String, one string = 1;
        resources: Option<super::wellknown::Any>, opt message = 2;
        annotations: std::collections::BTreeMap<String, String>, map string = 3;
    }
    StartRequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
    }
    StartResponse {
        pid: u32, one uint32 = 1;
    }
    WaitRequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
    }
    WaitResponse {
        exit_status: u32, one uint32 = 1;
        exited_at: Option<super::wellknown::Timestamp>, opt message = 2;
    }
    StatsRequest {
        id: String, one string = 1;
    }
    StatsResponse {
        stats: Option<super::wellknown::Any>, opt message = 1;
    }
    ConnectRequest {
        id: String, one string = 1;
    }
    ConnectResponse {
        shim_pid: u32, one uint32 = 1;
        task_pid: u32, one uint32 = 2;
        version: String, one string = 3;
    }
    ShutdownRequest {
        id: String, one string = 1;
        now: bool, one bool = 2;
    }
    PauseRequest {
        id: String, one string = 1;
    }
    ResumeRequest {
        id: String, one string = 1;
    }
}
