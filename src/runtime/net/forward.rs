//! Carries TCP connections and UDP datagrams from ports of 127.0.0.1 to the container.
//!
//! One thread that lives in the gateway's namespace: the listeners were made in the host's and keep
//! belonging there, whatever the thread dials starts from the gateway.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener as Accepting, TcpStream, UdpSocket as Datagrams};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::dns;
use crate::model::ExposedPort;
use crate::sys::netns;

/// How long a silent UDP client keeps its way back.
const UDP_IDLE: Duration = Duration::from_secs(90);
const COPY_BUFFER: usize = 64 * 1024;
/// How often a number that is free for TCP is looked for when UDP has it.
const PORT_TRIES: usize = 100;

/// Bound sockets on 127.0.0.1 with the container port each leads to.
#[derive(Default)]
pub struct Listeners {
    tcp: Vec<(TcpListener, u16)>,
    udp: Vec<(UdpSocket, u16)>,
}

impl Listeners {
    /// Binds one free number for each container port, for its TCP and UDP alike. Other protocols
    /// are left out.
    pub fn bind<'a>(
        exposed: impl Iterator<Item = &'a ExposedPort>,
    ) -> io::Result<(Self, BTreeMap<ExposedPort, u16>)> {
        let mut wanted: BTreeMap<u16, BTreeSet<&ExposedPort>> = BTreeMap::new();
        for port in exposed.filter(|port| matches!(port.protocol.as_str(), "tcp" | "udp")) {
            wanted.entry(port.number).or_default().insert(port);
        }
        let (mut listeners, mut ports) = (Self::default(), BTreeMap::new());
        for (number, protocols) in wanted {
            let has = |name: &str| protocols.iter().any(|port| port.protocol == name);
            let (tcp, udp, chosen) = bind_one(has("tcp"), has("udp"))?;
            listeners.tcp.extend(tcp.map(|socket| (socket, number)));
            listeners.udp.extend(udp.map(|socket| (socket, number)));
            ports.extend(protocols.into_iter().map(|port| (port.clone(), chosen)));
        }
        Ok((listeners, ports))
    }
}

fn bind_one(tcp: bool, udp: bool) -> io::Result<(Option<TcpListener>, Option<UdpSocket>, u16)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        let stream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = stream.local_addr()?.port();
        stream.set_nonblocking(true)?;
        if !udp {
            return Ok((Some(stream), None, port));
        }
        match UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(datagrams) => {
                datagrams.set_nonblocking(true)?;
                return Ok((tcp.then_some(stream), Some(datagrams), port));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The running thread; dropping it ends every connection.
pub struct Forwarder {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Starts forwarding to `container` and answering name queries on `nameserver`, a gateway's
    /// address.
    pub fn start(
        gateway: OwnedFd,
        container: Ipv4Addr,
        listeners: Listeners,
        nameserver: Ipv4Addr,
        tried: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (started, waiting) = std::sync::mpsc::channel();
        let run = move || {
            let prepared = prepare(&gateway, nameserver);
            let (runtime, names) = match prepared {
                Ok(ready) => ready,
                Err(error) => return drop(started.send(Err(error))),
            };
            runtime.block_on(async move {
                let served = serve(container, listeners, names, tried);
                let _ = started.send(served);
                let _ = stopped.await;
            });
        };
        let thread = std::thread::Builder::new().name("forwarder".into()).spawn(run)?;
        let forwarder = Self { stop: Some(stop), thread: Some(thread) };
        waiting.recv().unwrap_or_else(|_| Err(io::Error::other("the forwarder's thread died")))?;
        Ok(forwarder)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Moves this thread into the gateway and makes what must be made there.
fn prepare(
    gateway: &OwnedFd,
    nameserver: Ipv4Addr,
) -> io::Result<(tokio::runtime::Runtime, UdpSocket)> {
    netns::enter(gateway.as_fd())?;
    let names = UdpSocket::bind((nameserver, 53))?;
    names.set_nonblocking(true)?;
    Ok((tokio::runtime::Builder::new_current_thread().enable_all().build()?, names))
}

/// Spawns a task for each socket.
fn serve(
    container: Ipv4Addr,
    listeners: Listeners,
    names: UdpSocket,
    tried: Arc<AtomicBool>,
) -> io::Result<()> {
    let names = Datagrams::from_std(names)?;
    tokio::spawn(async move { dns::serve(names, &tried).await });
    for (listener, port) in listeners.tcp {
        let listener = Accepting::from_std(listener)?;
        tokio::spawn(accept(listener, SocketAddrV4::new(container, port)));
    }
    for (socket, port) in listeners.udp {
        let socket = Arc::new(Datagrams::from_std(socket)?);
        tokio::spawn(relay_datagrams(socket, SocketAddrV4::new(container, port)));
    }
    Ok(())
}

async fn accept(listener: Accepting, target: SocketAddrV4) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(relay(client, target))),
            // Out of descriptors, or a client that gave up: neither ends the service.
            Err(error) => {
                tracing::debug!(%error, %target, "accept failed");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Carries one connection. Ends are passed on one direction at a time, so half-closed connections
/// work; a refusal or a reset on one side becomes a reset on the other.
async fn relay(mut client: TcpStream, target: SocketAddrV4) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (up, down) = (&mut client, &mut server);
    if copy_bidirectional_with_sizes(up, down, COPY_BUFFER, COPY_BUFFER).await.is_err() {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// A client's way to the container and back.
struct Association {
    socket: Datagrams,
    last: Mutex<Instant>,
}

type Associations = Arc<Mutex<HashMap<SocketAddr, Arc<Association>>>>;

async fn relay_datagrams(listener: Arc<Datagrams>, target: SocketAddrV4) {
    let known = Associations::default();
    let mut buffer = vec![0_u8; 65536];
    loop {
        // An error here is an earlier reply's, which its client refused.
        let Ok((length, client)) = listener.recv_from(&mut buffer).await else { continue };
        let found = lock(&known).get(&client).cloned();
        let association = match found {
            Some(association) => association,
            None => match associate(target).await {
                Ok(fresh) => {
                    let fresh = Arc::new(fresh);
                    lock(&known).insert(client, fresh.clone());
                    let back = answer(listener.clone(), client, fresh.clone(), known.clone());
                    tokio::spawn(back);
                    fresh
                }
                Err(error) => {
                    tracing::debug!(%error, %client, "datagram dropped");
                    continue;
                }
            },
        };
        *lock(&association.last) = Instant::now();
        // An error may be the refusal of an earlier datagram; this one deserves its own try.
        if association.socket.send(&buffer[..length]).await.is_err() {
            let _ = association.socket.send(&buffer[..length]).await;
        }
    }
}

async fn associate(target: SocketAddrV4) -> io::Result<Association> {
    let socket = Datagrams::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(target).await?;
    Ok(Association { socket, last: Mutex::new(Instant::now()) })
}

/// Carries replies to `client` until neither side has spoken for [`UDP_IDLE`].
async fn answer(
    listener: Arc<Datagrams>,
    client: SocketAddr,
    association: Arc<Association>,
    known: Associations,
) {
    let mut buffer = vec![0_u8; 65536];
    loop {
        let spoke = *lock(&association.last);
        let left = UDP_IDLE.saturating_sub(spoke.elapsed());
        if left.is_zero() {
            break;
        }
        if let Ok(Ok(length)) = timeout(left, association.socket.recv(&mut buffer)).await {
            *lock(&association.last) = Instant::now();
            let _ = listener.send_to(&buffer[..length], client).await;
        }
    }
    lock(&known).remove(&client);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
