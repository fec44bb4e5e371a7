//! A packet socket that keeps only what was sent to strangers.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};

const ETH_P_IP: u16 = 0x0800;
/// Offset of the destination address in an IPv4 header (RFC 791).
const DESTINATION: u32 = 16;
const FIRST_MULTICAST: u32 = 0xe000_0000;

/// Opens a packet socket in the calling thread's network namespace that queues arriving IPv4
/// packets except those to the addresses in `known`, multicast and broadcast.
///
/// `packet(7)`: `CAP_NET_RAW`, `CONFIG_PACKET`. Open it before an interface is up, so that nothing
/// slips in before the filter.
pub fn strangers(known: [Ipv4Addr; 2]) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let number = u32::from(ETH_P_IP.to_be());
    let protocol = std::num::NonZeroU32::new(number).map(Protocol::from_raw);
    let family = AddressFamily::PACKET;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, protocol)?;
    attach(&socket, &mut program(known))?;
    Ok(socket)
}

/// Whether a packet waits in the queue; takes it out.
pub fn caught(socket: BorrowedFd<'_>) -> bool {
    let mut buffer = [0_u8; 64];
    rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT).is_ok()
}

/// Classic BPF: load the destination, drop what is known or multicast, keep 64 bytes of the rest.
fn program(known: [Ipv4Addr; 2]) -> [libc::sock_filter; 6] {
    let line = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    [
        line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, DESTINATION),
        line(equal, 3, 0, known[0].to_bits()),
        line(equal, 2, 0, known[1].to_bits()),
        line(at_least, 1, 0, FIRST_MULTICAST),
        line(libc::BPF_RET | libc::BPF_K, 0, 0, 64),
        line(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

fn attach(socket: &OwnedFd, lines: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: lines.len() as u16, filter: lines.as_mut_ptr() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the kernel copies the `sock_fprog` and the `len` lines it points at during the call;
    // both outlive it, and `len` is the slice's own length.
    let rc = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const program).cast(), size)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
