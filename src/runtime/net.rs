//! skeleton
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use super::RuntimeError;
use crate::model::ExposedPort;

/// A container's network: its namespace, a gateway namespace, the veth pair between them, and the
/// forwarder. All of it lives by this value's descriptors and thread only.
pub struct PodNet;

impl PodNet {
    /// `publish`: forward the exposed ports from 127.0.0.1.
    pub fn create(_exposed: &BTreeSet<ExposedPort>, _publish: bool) -> Result<Self, RuntimeError> {
        todo!()
    }
    /// The container's namespace (path for a spec: `/proc/<slim's pid>/fd/<n>`).
    pub fn netns(&self) -> BorrowedFd<'_> {
        todo!()
    }
    pub fn container_ip(&self) -> IpAddr {
        todo!()
    }
    /// Address of the gateway: `host-gateway` and the nameserver of resolv.conf.
    pub fn gateway_ip(&self) -> IpAddr {
        todo!()
    }
    /// Exposed port to port on 127.0.0.1; empty without `publish`.
    pub fn ports(&self) -> &BTreeMap<ExposedPort, u16> {
        todo!()
    }
    pub fn outside_tried(&self) -> bool {
        todo!()
    }
}
