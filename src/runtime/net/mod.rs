//! A container's network without a trace on the host.
//!
//! Two namespaces that live by descriptors of this process, joined by a veth pair: the container's,
//! and a gateway whose only inhabitants are slim's sockets. Exposed ports are forwarded from
//! 127.0.0.1 by dialling the container's address from the gateway, so a service that trusts or
//! binds loopback behaves as under Docker. The gateway answers everything that is meant for the
//! world with a refusal, at once, and remembers that it did.

mod dns;
mod forward;
mod links;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::RuntimeError;
use crate::model::ExposedPort;
use crate::sys::{netns, packet};
use forward::{Forwarder, Listeners};

// Docker's first addresses, in a network of four: programs find what they know, and the addresses
// exist only inside the two namespaces, so any number of containers can use them side by side.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);
const BROADCAST: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 3);
const PREFIX: u8 = 30;

/// A container's network: its namespace, a gateway namespace, the veth pair between them, and the
/// forwarder. All of it lives by this value's descriptors and thread only.
pub struct PodNet {
    container: OwnedFd,
    ports: BTreeMap<ExposedPort, u16>,
    /// Packets that left for strangers; `None` on kernels without packet sockets.
    strangers: Option<OwnedFd>,
    tried: Arc<AtomicBool>,
    /// Dropped with this value: stops the thread and closes the gateway.
    _forwarder: Forwarder,
}

impl PodNet {
    /// Makes both namespaces and, with `publish`, forwards the exposed TCP and UDP ports from free
    /// ports of 127.0.0.1, the same number for both protocols of one port.
    pub fn create(exposed: &BTreeSet<ExposedPort>, publish: bool) -> Result<Self, RuntimeError> {
        Self::try_create(exposed, publish).map_err(|(what, error)| RuntimeError::Host {
            what: what.to_owned(),
            why: error.to_string(),
            way_out: "run slim as root with CAP_NET_ADMIN and CAP_SYS_ADMIN (in a container: \
                      --privileged), or use --network host"
                .to_owned(),
        })
    }

    fn try_create(
        exposed: &BTreeSet<ExposedPort>,
        publish: bool,
    ) -> Result<Self, (&'static str, io::Error)> {
        let at = |what| move |error| (what, error);
        let container = netns::create().map_err(at("network namespace"))?;
        let gateway = netns::create().map_err(at("network namespace"))?;
        // Before the links: nothing can arrive yet, so nothing unfiltered is in the queue.
        let sniff = || packet::strangers([GATEWAY, BROADCAST]);
        let strangers = netns::inside(gateway.as_fd(), sniff).ok();
        links::join(&gateway, &container).map_err(at("veth pair of the container's network"))?;

        let wanted = exposed.iter().filter(|_| publish);
        let (listeners, ports) = Listeners::bind(wanted).map_err(at("port on 127.0.0.1"))?;
        let tried = Arc::new(AtomicBool::new(false));
        let forwarder = Forwarder::start(gateway, CONTAINER, listeners, GATEWAY, tried.clone())
            .map_err(at("port forwarder"))?;
        Ok(Self { container, ports, strangers, tried, _forwarder: forwarder })
    }

    /// The container's namespace (path for a spec: `/proc/<slim's pid>/fd/<n>`).
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }

    pub fn container_ip(&self) -> IpAddr {
        IpAddr::V4(CONTAINER)
    }

    /// Address of the gateway: `host-gateway` and the nameserver of resolv.conf.
    pub fn gateway_ip(&self) -> IpAddr {
        IpAddr::V4(GATEWAY)
    }

    /// Exposed port to port on 127.0.0.1; empty without `publish`.
    pub fn ports(&self) -> &BTreeMap<ExposedPort, u16> {
        &self.ports
    }

    /// Whether the container sent a packet to anything but the gateway, or asked it for a name.
    pub fn outside_tried(&self) -> bool {
        let caught = self.strangers.as_ref().is_some_and(|socket| packet::caught(socket.as_fd()));
        self.tried.fetch_or(caught, Ordering::Relaxed) || caught
    }
}
