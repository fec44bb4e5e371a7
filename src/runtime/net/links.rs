//! The veth pair, addresses, routes and sysctls of a container's two namespaces.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Error, Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{CONTAINER, GATEWAY, PREFIX};
use crate::sys::netns;

/// The container's interface, named as in Docker.
const INSIDE: &str = "eth0";
const OUTSIDE: &str = "gw0";

/// Joins the two namespaces and brings everything up.
pub fn join(gateway: &OwnedFd, container: &OwnedFd) -> io::Result<()> {
    let target = container.as_raw_fd();
    netns::inside(gateway.as_fd(), || {
        netlink(|handle| make_pair(handle, target))?;
        tune_gateway();
        netlink(|handle| bring_up(handle, OUTSIDE, GATEWAY))?;
        netlink(take_everything)
    })?;
    netns::inside(container.as_fd(), || {
        sysctl(&format!("ipv6/conf/{INSIDE}/disable_ipv6"), "1");
        netlink(|handle| bring_up(handle, INSIDE, CONTAINER))?;
        netlink(default_route)
    })
}

async fn make_pair(handle: Handle, container: RawFd) -> Result<(), Error> {
    handle.link().add(LinkVeth::new(OUTSIDE, INSIDE).build()).execute().await?;
    let moved = LinkUnspec::new_with_name(INSIDE).setns_by_fd(container).build();
    handle.link().set(moved).execute().await
}

/// Gives `name` its address and lifts it and `lo`.
async fn bring_up(handle: Handle, name: &'static str, address: Ipv4Addr) -> Result<(), Error> {
    let index = index_of(name)?;
    handle.address().add(index, IpAddr::V4(address), PREFIX).execute().await?;
    for link in ["lo", name] {
        handle.link().set(LinkUnspec::new_with_name(link).up().build()).execute().await?;
    }
    Ok(())
}

/// Makes the gateway take packets for every address as its own. Nothing listens there, so TCP is
/// reset and UDP answered with "port unreachable" at once; an `unreachable` route would answer one
/// packet a second (`net.ipv4.route.error_cost`), and programs would hang.
async fn take_everything(handle: Handle) -> Result<(), Error> {
    let everything = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .output_interface(index_of("lo")?)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .build();
    handle.route().add(everything).execute().await
}

async fn default_route(handle: Handle) -> Result<(), Error> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY).build();
    handle.route().add(route).execute().await
}

fn index_of(name: &str) -> Result<u32, Error> {
    if_nametoindex(name)
        .map_err(|errno| Error::NamespaceError(format!("interface {name}: {errno}")))
}

/// No IPv6, as on Docker's default bridge; refusals as many as needed; no refusal of pings, which
/// would look like answers from the world; and ports enough for load tests through the forwarder.
fn tune_gateway() {
    sysctl(&format!("ipv6/conf/{OUTSIDE}/disable_ipv6"), "1");
    for (name, value) in [
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv4/icmp_echo_ignore_all", "1"),
        ("ipv4/ip_local_port_range", "1024 65535"),
        ("ipv4/tcp_tw_reuse", "1"),
    ] {
        sysctl(name, value);
    }
}

/// Best effort: /proc/sys shows the calling thread's namespace, but a kernel may lack the knob (no
/// IPv6) or /proc/sys may be read-only, and the network works without.
fn sysctl(name: &str, value: &str) {
    if let Err(error) = std::fs::write(format!("/proc/sys/net/{name}"), value) {
        tracing::debug!(name, value, %error, "sysctl not set");
    }
}

/// Runs one conversation with the calling thread's namespace.
fn netlink<F: Future<Output = Result<(), Error>>>(
    work: impl FnOnce(Handle) -> F,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(handle).await.map_err(plain)
    })
}

/// The kernel's own error where there is one: its text is what people search for.
fn plain(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
