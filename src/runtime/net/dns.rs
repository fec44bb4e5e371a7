//! The gateway's name server: there is no such name, at once.
//!
//! A refusal by ICMP would do for glibc, but musl's resolver never sees it and waits ten seconds; of
//! all answers NXDOMAIN is the one after which both stop asking.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

const HEADER: usize = 12;
const TYPE_PTR: u16 = 12;

/// Answers until the runtime stops; sets `tried` when a name is asked for.
pub async fn serve(socket: UdpSocket, tried: &AtomicBool) {
    let mut buffer = [0_u8; 1500];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let Some((reply, kind)) = answer(&buffer[..length]) else { continue };
        // Servers look up who called them: that is not a wish to reach the world.
        if kind != TYPE_PTR {
            tried.store(true, Ordering::Relaxed);
        }
        let _ = socket.send_to(&reply, client).await;
    }
}

/// NXDOMAIN for the first question of a query (RFC 1035, 4.1), and the question's type.
fn answer(query: &[u8]) -> Option<(Vec<u8>, u16)> {
    let is_reply = query.get(2)? & 0x80 != 0;
    if is_reply || query.len() < HEADER || query[4..6] == [0, 0] {
        return None;
    }
    let mut end = HEADER;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    let kind = u16::from_be_bytes([*query.get(end + 1)?, *query.get(end + 2)?]);
    let mut reply = query.get(..end + 5)?.to_vec();
    reply[2] = 0x80 | (query[2] & 0x79); // a reply, opcode and recursion-desired as asked
    reply[3] = 0x80 | 3; // recursion available, NXDOMAIN
    reply[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    Some((reply, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &[u8], kind: u8) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&[0, kind, 0, 1, 0, 0, 41]); // and the head of an EDNS record
        bytes
    }

    #[test]
    fn every_name_is_unknown() {
        let (reply, kind) = answer(&query(b"\x02ab\x03com\x00", 28)).expect("an answer");
        assert_eq!(kind, 28);
        assert_eq!(reply[..4], [0xab, 0xcd, 0x81, 0x83]);
        assert_eq!(reply[4..12], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(reply[12..], *b"\x02ab\x03com\x00\x00\x1c\x00\x01");
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        for bad in [&b""[..], b"\xab\xcd\x81\x80", &query(b"\x3fab", 1), &[0; 12]] {
            assert_eq!(answer(bad), None, "{bad:?}");
        }
    }
}
