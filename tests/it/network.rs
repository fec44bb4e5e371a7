//! The container's network: what the forwarder carries, and what the gateway refuses. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use slim::model::ExposedPort;
use slim::runtime::net::PodNet;
use slim::runtime::ready::listening;
use slim::sys::netns;

use crate::support::{Need, have};

const PATIENCE: Duration = Duration::from_secs(10);

fn pod(ports: &[&str]) -> PodNet {
    let parse = |text: &&str| {
        let (number, protocol) = text.split_once('/').expect("number/protocol");
        ExposedPort { number: number.parse().expect("a number"), protocol: protocol.to_owned() }
    };
    PodNet::create(&ports.iter().map(parse).collect::<BTreeSet<_>>(), true).expect("a network")
}

fn published(pod: &PodNet, number: u16, protocol: &str) -> SocketAddr {
    let port = ExposedPort { number, protocol: protocol.to_owned() };
    SocketAddr::from((Ipv4Addr::LOCALHOST, pod.ports()[&port]))
}

fn inside<T: Send>(pod: &PodNet, work: impl FnOnce() -> io::Result<T> + Send) -> T {
    netns::inside(pod.netns(), work).expect("work inside")
}

fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// Serves every connection with `work` on threads that end with the test.
fn serve(listener: TcpListener, work: fn(TcpStream)) {
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || work(stream));
        }
    });
}

fn echo(mut stream: TcpStream) {
    let mut writer = stream.try_clone().expect("a second handle");
    let _ = io::copy(&mut stream, &mut writer);
    let _ = writer.shutdown(Shutdown::Write);
}

#[test]
fn large_transfers_pass_both_ways_and_half_close_works() {
    if !have(&[Need::Root]) {
        return;
    }
    let pod = pod(&["80/tcp"]);
    serve(inside(&pod, || TcpListener::bind("0.0.0.0:80")), echo);
    let mut stream = dial(published(&pod, 80, "tcp"));
    let sent: Vec<u8> = (0..16_u32 << 20).map(|n| (n ^ (n >> 8)) as u8).collect();
    let (mut writer, copy) = (stream.try_clone().expect("a handle"), sent.clone());
    let sender = std::thread::spawn(move || {
        writer.write_all(&copy).expect("all sent");
        writer.shutdown(Shutdown::Write).expect("half closed");
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("all received");
    sender.join().expect("the sender");
    assert!(got == sent, "{} bytes came back of {}", got.len(), sent.len());
}

#[test]
fn many_connections_at_once() {
    if !have(&[Need::Root]) {
        return;
    }
    let pod = pod(&["80/tcp"]);
    serve(inside(&pod, || TcpListener::bind("0.0.0.0:80")), echo);
    let mut streams: Vec<_> = (0..200).map(|_| dial(published(&pod, 80, "tcp"))).collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        write!(stream, "{n:05}").expect("sent");
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut got = [0; 5];
        stream.read_exact(&mut got).expect("answered");
        assert_eq!(got, *format!("{n:05}").as_bytes());
    }
}

#[test]
fn the_service_sees_the_gateway_and_not_loopback() {
    if !have(&[Need::Root]) {
        return;
    }
    let pod = pod(&["80/tcp"]);
    let listener = inside(&pod, || TcpListener::bind("0.0.0.0:80"));
    let _client = dial(published(&pod, 80, "tcp"));
    let (_, peer) = listener.accept().expect("a connection");
    assert_eq!(peer.ip(), pod.gateway_ip());
    assert!(!pod.outside_tried(), "answering a client is no try to reach the outside");
}

#[test]
fn a_loopback_service_and_a_missing_one_reset_the_client() {
    if !have(&[Need::Root]) {
        return;
    }
    let pod = pod(&["80/tcp", "81/tcp"]);
    let _loopback = inside(&pod, || TcpListener::bind("127.0.0.1:80"));
    for port in [80, 81] {
        let started = Instant::now();
        // On a quick day the reset overtakes connect's return.
        let end = TcpStream::connect(published(&pod, port, "tcp"))
            .and_then(|mut client| client.read(&mut [0; 1]));
        assert_eq!(end.expect_err("a reset").kind(), ErrorKind::ConnectionReset, "port {port}");
        assert!(started.elapsed() < Duration::from_secs(2), "port {port}");
    }
}

#[test]
fn a_reset_of_the_service_reaches_the_client() {
    if !have(&[Need::Root]) {
        return;
    }
    let pod = pod(&["80/tcp"]);
    let listener = inside(&pod, || TcpListener::bind("0.0.0.0:80"));
    let mut client = dial(published(&pod, 80, "tcp"));
    let (server, _) = listener.accept().expect("a connection");
    client.write_all(b"never read").expect("sent");
    server.peek(&mut [0; 1]).expect("arrived");
    drop(server); // unread bytes make it a reset
    let end = client.read(&mut [0; 1]);
    assert_eq!(end.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
}

#[test]
fn datagrams_go_back_to_the_client_that_asked() {
    if !have(&[Need::Root]) {
        return;
    }
    let pod = pod(&["53/udp", "53/tcp"]);
    assert_eq!(published(&pod, 53, "udp"), published(&pod, 53, "tcp"), "one number for both");
    let client = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket.connect(published(&pod, 53, "udp")).expect("connected");
        socket
    };
    let (early, one, two) = (client(), client(), client());
    early.send(b"nobody listens yet").expect("sent");
    std::thread::sleep(Duration::from_millis(50));
    let server = inside(&pod, || UdpSocket::bind("0.0.0.0:53"));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            let _ = server.send_to(&buffer[..length], from);
        }
    });
    let big = vec![7; 60_000];
    for (socket, message) in [(&one, &b"one"[..]), (&two, b"two"), (&one, &big), (&early, b"now")] {
        socket.send(message).expect("sent");
        let mut got = vec![0; 65536];
        let length = socket.recv(&mut got).expect("an answer");
        assert_eq!(got[..length], *message);
    }
}

#[test]
fn two_pods_side_by_side_do_not_meet() {
    if !have(&[Need::Root]) {
        return;
    }
    let pods = [pod(&["80/tcp"]), pod(&["80/tcp"])];
    for (pod, word) in pods.iter().zip([b"one", b"two"]) {
        let listener = inside(pod, || TcpListener::bind("0.0.0.0:80"));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(word).expect("sent");
        });
    }
    let ask = |pod: &PodNet| {
        let mut got = String::new();
        dial(published(pod, 80, "tcp")).read_to_string(&mut got).expect("an answer");
        got
    };
    assert_eq!([ask(&pods[1]), ask(&pods[0])], ["two", "one"]);
}

#[test]
fn the_outside_is_refused_at_once_and_noticed() {
    if !have(&[Need::Root]) {
        return;
    }
    let pod = pod(&[]);
    assert_eq!(*pod.ports(), BTreeMap::new());
    inside(&pod, || TcpStream::connect((pod.gateway_ip(), 9)).map(drop).or(Ok(())));
    assert!(!pod.outside_tried(), "the gateway is not the outside");
    let started = Instant::now();
    for n in 1..=40 {
        let address = SocketAddr::from(([93, 184, 215, n], 443));
        let end = inside(&pod, || Ok(TcpStream::connect(address).map(drop)));
        assert_eq!(end.expect_err("a refusal").kind(), ErrorKind::ConnectionRefused);
        let end = inside(&pod, || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(address)?;
            socket.send(b"x")?;
            Ok(socket.recv(&mut [0; 1]))
        });
        assert_eq!(end.expect_err("a refusal").kind(), ErrorKind::ConnectionRefused);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(pod.outside_tried() && pod.outside_tried(), "noticed, and not forgotten");
}

#[test]
fn names_are_unknown_at_once_and_noticed() {
    if !have(&[Need::Root]) {
        return;
    }
    let pod = pod(&[]);
    let ask = |kind: u8| {
        inside(&pod, || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let head = [1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            let query = [&head[..], b"\x02ab\x03com\x00", &[0, kind, 0, 1]].concat();
            socket.send_to(&query, (pod.gateway_ip(), 53))?;
            let mut reply = [0; 512];
            socket.recv(&mut reply)?;
            Ok(reply[3] & 15)
        })
    };
    assert_eq!(ask(12), 3);
    assert!(!pod.outside_tried(), "a reverse lookup is none");
    assert_eq!(ask(1), 3);
    assert!(pod.outside_tried());
}

#[test]
fn readiness_sees_reachable_listeners_only() {
    if !have(&[Need::Root]) {
        return;
    }
    let pod = pod(&["80/tcp"]);
    assert!(!listening(Some(pod.netns()), 80));
    let _loopback = inside(&pod, || TcpListener::bind("127.0.0.1:80"));
    assert!(!listening(Some(pod.netns()), 80), "bound to loopback");
    let _own = inside(&pod, || TcpListener::bind((pod.container_ip(), 80)));
    assert!(listening(Some(pod.netns()), 80));
    assert!(!listening(Some(pod.netns()), 81));
    let _six = inside(&pod, || TcpListener::bind("[::]:82").or(TcpListener::bind("0.0.0.0:82")));
    assert!(listening(Some(pod.netns()), 82));
}

#[test]
fn nothing_is_left_on_the_host() {
    if !have(&[Need::Root]) {
        return;
    }
    let links = || std::fs::read_to_string("/proc/net/dev").expect("interfaces").lines().count();
    let before = links();
    let pod = pod(&["80/tcp"]);
    assert_eq!(links(), before, "no interface while it lives");
    let address = published(&pod, 80, "tcp");
    assert!(matches!(pod.container_ip(), IpAddr::V4(ip) if ip.is_private()));
    drop(pod);
    let end = TcpStream::connect(address).expect_err("the port is free again");
    assert_eq!(end.kind(), ErrorKind::ConnectionRefused);
}
