//! After a restore: all that must not be the same in two machines.

use crate::fault::{invalid, Reply};
use crate::proto::guest::{RenewRequest, RenewResponse};
use crate::server::Call;
use crate::{clock, diag, freeze, links, routes, setup};

/// Less than this is no seed for the kernel's generator.
const MIN_ENTROPY: usize = 32;

/// Does what is asked for, in an order in which nothing is seen half done, and says what was done. An error leaves the
/// containers frozen; to try again is safe.
pub fn renew(call: &Call, request: &RenewRequest) -> Reply<RenewResponse> {
    if request.entropy.len() < MIN_ENTROPY {
        return Err(invalid(format!("a renewal needs {MIN_ENTROPY} bytes of entropy, not {}", request.entropy.len())));
    }
    let mut renewed = Vec::new();
    let mut done = |word: &str| renewed.push(word.to_string());
    setup::add_entropy(&request.entropy)?;
    done("entropy");
    if request.clock_unix_ns != 0 {
        clock::set(request.clock_unix_ns)?;
        done("clock");
    }
    rename(call, request, &mut done)?;
    diag::drop_connections()?;
    done("connections");
    if !request.interfaces.is_empty() {
        links::set(&call.agent, &request.interfaces, &call.patience())?;
        routes::set(&request.routes)?;
        done("interfaces");
        done("routes");
    }
    if request.thaw {
        freeze::set(false, call.deadline)?;
        done("thaw");
    }
    Ok(RenewResponse { renewed })
}

fn rename(call: &Call, request: &RenewRequest, done: &mut impl FnMut(&str)) -> Reply<()> {
    let agent = &call.agent;
    if !request.machine_id.is_empty() {
        setup::put_machine_id(agent, &request.machine_id)?;
        done("machine-id");
    }
    if !request.hostname.is_empty() {
        setup::set_hostname(&request.hostname)?;
        setup::put_file(agent, "hostname", format!("{}\n", request.hostname).as_bytes())?;
        done("hostname");
    }
    for (name, word, content) in
        [("resolv.conf", "resolv-conf", &request.resolv_conf), ("hosts", "hosts", &request.hosts)]
    {
        if !content.is_empty() {
            setup::put_file(agent, name, content)?;
            done(word);
        }
    }
    Ok(())
}
