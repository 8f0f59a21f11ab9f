//! TCP connections to ports of the machine's loopback, which the host asks for: their bytes are read and written as a
//! process's streams are, and they end with the host's own connection.

use crate::fault::{fault, invalid, not_found, Code, During, Reply};
use crate::proto::guest::{ConnectRequest, ConnectResponse};
use crate::server::Call;
use crate::streams::Streams;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Of one host's connection: each has a call that waits for its bytes, and others need theirs.
const LIMIT: usize = 64;
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Dialled(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: u64,
    connections: BTreeMap<String, (TcpStream, Arc<Streams>)>,
}

impl Dialled {
    pub fn streams(&self, id: &str) -> Reply<Arc<Streams>> {
        let open = self.0.lock().unwrap();
        let found = open.connections.get(id).map(|(_, streams)| streams.clone());
        found.ok_or_else(|| not_found(format!("there is no connection {id:?}")))
    }

    /// Whoever waits for its bytes has them all then.
    pub fn end(&self, id: &str) {
        if let Some((socket, streams)) = self.0.lock().unwrap().connections.remove(id) {
            streams.give_up();
            let _ = socket.shutdown(Shutdown::Both); // it may be over already
        }
    }

    fn add(&self, socket: TcpStream) -> Reply<String> {
        let streams = Arc::<Streams>::default();
        streams.join(socket.as_fd())?;
        let mut open = self.0.lock().unwrap();
        if open.connections.len() >= LIMIT {
            return Err(fault(Code::ResourceExhausted, format!("{LIMIT} connections are open")));
        }
        open.last += 1;
        let id = format!("port-{}", open.last);
        open.connections.insert(id.clone(), (socket, streams));
        Ok(id)
    }
}

/// By IPv4, or IPv6 where nobody listens there.
pub fn connect(call: &Call, request: &ConnectRequest) -> Reply<ConnectResponse> {
    let port = u16::try_from(request.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| invalid("ports are 1 to 65535"))?;
    let to = |address: IpAddr| TcpStream::connect_timeout(&(address, port).into(), ANSWERS_WITHIN);
    let socket = to(Ipv4Addr::LOCALHOST.into())
        .or_else(|error| to(Ipv6Addr::LOCALHOST.into()).map_err(|_| error))
        .during(|| format!("cannot connect to port {port}"))?;
    let _ = socket.set_nodelay(true); // what comes is in parts already
    Ok(ConnectResponse { exec_id: call.link.dialled.add(socket)? })
}
