//! The guest service (drupe.guest.v1, src/drupe/rpc/guest/guest.proto).

use crate::fault::{fault, Code, Reply};
use crate::proto::guest::*;
use crate::proto::wellknown::Empty;
use crate::server::{decode, unary, Call, Outcome};
use crate::streams::{Patience, Streams};
use crate::{
    bundle, clock, copy, devices, dial, freeze, lifecycle, links, mounts, online, processes, renew, routes, setup,
    shutdown, template,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const NAME: &str = "drupe.guest.v1.Guest";
pub const PROTOCOL: u32 = 1;
/// What came after the first version of the protocol.
const FEATURES: [&str; 7] = ["cgroup2", "connect", "copy", "freeze", "mount-inside", "overlay", "put-away"];

impl Call {
    pub fn patience(&self) -> Patience<'_> {
        Patience { link: &self.link, deadline: self.deadline }
    }

    /// Not beyond a time of the request's own; 0: it has none.
    pub fn patience_of(&self, timeout_ms: u32) -> Patience<'_> {
        let own = (timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(u64::from(timeout_ms)));
        Patience { link: &self.link, deadline: [own, self.deadline].into_iter().flatten().min() }
    }
}

pub fn call(call: &Call, method: &str, payload: &[u8]) -> Reply<Outcome> {
    match method {
        "Check" => unary(payload, |request| check(call, &request)),
        "Setup" => unary(payload, |request| setup::set_up(call, &request)),
        "PutBundle" => unary(payload, |request| bundle::put(&call.agent, &request, &call.patience())),
        "ReadOutput" => unary(payload, |request| read_output(call, &request)),
        "WriteInput" => unary(payload, |request| write_input(call, &request)),
        "Connect" => unary(payload, |request| dial::connect(call, &request)),
        "Disconnect" => unary(payload, |request: DisconnectRequest| {
            call.link.dialled.end(&request.exec_id);
            Ok(Empty {})
        }),
        "Events" => events(call, &decode(payload)?),
        "CopyIn" => copy::copy_in(call),
        "CopyOut" => copy::copy_out(call, &decode(payload)?),
        "Mount" => unary(payload, |request: MountRequest| mount(call, &request)),
        "Unmount" => unary(payload, |request: UnmountRequest| unmount(call, &request)),
        "AwaitDevice" => unary(payload, |request| await_device(call, &request)),
        "Processes" => unary(payload, |request: ProcessesRequest| {
            processes::of(&call.agent, &request.id).map(|processes| ProcessesResponse { processes })
        }),
        "Metrics" => unary(payload, |_: Empty| Ok(processes::metrics(&call.agent))),
        "SetInterfaces" => unary(payload, |request: SetInterfacesRequest| {
            links::quit(&request.remove)?;
            links::set(&call.agent, &request.interfaces, &call.patience()).map(|()| Empty {})
        }),
        "SetRoutes" => unary(payload, |request: SetRoutesRequest| routes::set(&request.routes).map(|()| Empty {})),
        "ListInterfaces" => unary(payload, |_: Empty| {
            Ok(ListInterfacesResponse { interfaces: links::described()?, routes: routes::described()? })
        }),
        "SetOnline" => unary(payload, |request: SetOnlineRequest| {
            online::set(&call.agent, &request, &call.patience_of(request.timeout_ms))
        }),
        "Freeze" => {
            unary(payload, |request: FreezeRequest| freeze::set(request.frozen, call.deadline).map(|()| Empty {}))
        }
        "PutAway" => unary(payload, |_: Empty| template::put_away(&call.agent)),
        "Renew" => unary(payload, |request| renew::renew(call, &request)),
        "SetClock" => unary(payload, |request: SetClockRequest| clock::set(request.unix_ns).map(|()| Empty {})),
        "AddEntropy" => unary(payload, |request: AddEntropyRequest| setup::add_entropy(&request.data)),
        "SetSysctls" => unary(payload, |request: SetSysctlsRequest| setup::set_sysctls(&request.sysctls)),
        "Shutdown" => unary(payload, |request: ShutdownRequest| {
            let limit = Duration::from_millis(u64::from(request.timeout_ms));
            shutdown::begin(&call.agent, Some(Instant::now() + limit), request.reboot).map(|()| Empty {})
        }),
        _ => Err(fault(Code::Unimplemented, format!("service {NAME} has no method {method:?}"))),
    }
}

fn check(call: &Call, request: &CheckRequest) -> Reply<CheckResponse> {
    if request.protocol != 0 && request.protocol != PROTOCOL {
        let words = format!(
            "this guest's agent ({}) speaks protocol {PROTOCOL}, the host protocol {}: build the guest anew",
            env!("CARGO_PKG_VERSION"),
            request.protocol
        );
        return Err(fault(Code::FailedPrecondition, words));
    }
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    Ok(CheckResponse {
        protocol: PROTOCOL,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        features: FEATURES.map(String::from).to_vec(),
        kernel,
        boot_id: devices::read(Path::new("/proc/sys/kernel/random/boot_id")).unwrap_or_default(),
        is_set_up: call.agent.state().is_set_up,
        processors: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        memory_bytes: rustix::system::sysinfo().totalram as u64,
    })
}

/// Those of a process, or of a connection.
fn streams(call: &Call, id: &str, exec_id: &str) -> Reply<Arc<Streams>> {
    if id.is_empty() {
        return call.link.dialled.streams(exec_id);
    }
    lifecycle::streams(&call.agent, id, exec_id)
}

fn read_output(call: &Call, request: &ReadOutputRequest) -> Reply<ReadOutputResponse> {
    let streams = streams(call, &request.id, &request.exec_id)?;
    let part = streams.read(request.stream, request.offset, request.max_bytes, &call.patience())?;
    Ok(ReadOutputResponse { data: part.data, end: part.end, offset: part.offset })
}

fn write_input(call: &Call, request: &WriteInputRequest) -> Reply<Empty> {
    let streams = streams(call, &request.id, &request.exec_id)?;
    streams.write(&request.data, request.offset, &call.patience())?;
    if request.close {
        streams.close_input();
    }
    Ok(Empty {})
}

fn events(call: &Call, request: &EventsRequest) -> Reply<Outcome> {
    let mut after = request.after;
    loop {
        let found = call.agent.await_some(Some(&call.link), call.deadline, |state| state.events.after(after))?;
        for event in found {
            after = event.number;
            if !call.link.stream(call.stream, &event) {
                return Ok(Outcome::Streamed);
            }
        }
    }
}

fn mount(call: &Call, request: &MountRequest) -> Reply<Empty> {
    let wanted = request.mount.clone().unwrap_or_default();
    if request.id.is_empty() {
        return mounts::mount(&call.agent, &wanted, &call.patience()).map(|()| Empty {});
    }
    let pid = lifecycle::living(&call.agent, &request.id)?;
    mounts::mount_inside(&call.agent, pid, &wanted, &call.patience()).map(|()| Empty {})
}

fn unmount(call: &Call, request: &UnmountRequest) -> Reply<Empty> {
    if request.id.is_empty() {
        return mounts::unmount_below(Path::new(&request.target)).map(|()| Empty {});
    }
    let pid = lifecycle::living(&call.agent, &request.id)?;
    mounts::unmount_inside(pid, &request.target).map(|()| Empty {})
}

fn await_device(call: &Call, request: &AwaitDeviceRequest) -> Reply<AwaitDeviceResponse> {
    let patience = call.patience_of(request.timeout_ms);
    let device = request.device.clone().unwrap_or_default();
    if request.gone {
        devices::await_gone(&call.agent, &device, &patience)?;
        return Ok(AwaitDeviceResponse::default());
    }
    devices::await_there(&call.agent, &device, &patience)
}
