//! A network of its own for a test, with a name server that says what the test wants.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

/// What is said of a name.
#[derive(Debug, Clone)]
pub enum Says {
    /// These addresses, which may be used once.
    Addresses(Vec<IpAddr>),
    /// The first of these at the first question, and so on, in turn.
    InTurn(Vec<IpAddr>),
    /// This RCODE (RFC 1035, 4.1.1): 2 the server failed, 3 there is no such name.
    Error(u8),
    /// Nothing, ever.
    Silence,
}

/// The name server of this process and of all that it starts.
#[derive(Clone)]
pub struct Dns(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    names: HashMap<String, Says>,
    asked: usize,
}

impl Dns {
    /// Leaves the machine's network for one that has nothing but these addresses beside 127/8 and ::1.
    /// To be called by the test's own thread, inside a pen, before it starts anything.
    pub fn alone(folder: &Path, addresses: &[&str]) -> Self {
        // SAFETY: no other thread's files or memory are concerned by a new network namespace.
        let unshared =
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
        unshared.unwrap();
        ip(&["link", "set", "lo", "up"]);
        for address in addresses {
            ip(&["address", "add", address, "dev", "lo"]);
        }
        let resolv = folder.join("resolv.conf");
        fs::write(&resolv, "nameserver 127.0.0.1\n").unwrap();
        // Seen in the pen only.
        let mut mount = Command::new("mount");
        mount.arg("--bind").arg(&resolv).arg("/etc/resolv.conf");
        assert!(mount.status().unwrap().success());
        let (dns, socket) = (
            Self(Arc::default()),
            UdpSocket::bind("127.0.0.1:53").unwrap(),
        );
        let server = dns.clone();
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((size, who)) = socket.recv_from(&mut question) {
                if let Some(answer) = server.answer(&question[..size]) {
                    socket.send_to(&answer, who).unwrap();
                }
            }
        });
        dns
    }

    /// From now on.
    pub fn says(&self, name: &str, says: Says) {
        let mut state = self.0.lock().unwrap();
        state.names.insert(name.to_owned(), says);
        state.asked = 0;
    }

    /// The same, with addresses.
    pub fn has(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        self.says(name, Says::Addresses(addresses.collect()));
    }

    /// Questions since a name was set last.
    pub fn asked(&self) -> usize {
        self.0.lock().unwrap().asked
    }

    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (mut at, mut labels) = (12, Vec::new());
        while question[at] != 0 {
            let end = at + 1 + usize::from(question[at]);
            labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
            at = end;
        }
        let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
        let mut state = self.0.lock().unwrap();
        state.asked += 1;
        let turn = state.asked - 1;
        let says = state.names.get(&labels.join(".")).cloned();
        let (code, addresses) = match says.unwrap_or(Says::Error(3)) {
            Says::Addresses(addresses) => (0, addresses),
            Says::InTurn(addresses) => (0, vec![addresses[turn % addresses.len()]]),
            Says::Error(code) => (code, Vec::new()),
            Says::Silence => return None,
        };
        let data: Vec<Vec<u8>> = addresses
            .iter()
            .filter_map(|address| match (address, kind) {
                (IpAddr::V4(v4), 1) => Some(v4.octets().to_vec()),
                (IpAddr::V6(v6), 28) => Some(v6.octets().to_vec()),
                _ => None,
            })
            .collect();
        let mut answer = question[..2].to_vec();
        answer.extend([
            0x81,
            0x80 | code,
            0,
            1,
            0,
            u8::try_from(data.len()).unwrap(),
            0,
            0,
            0,
            0,
        ]);
        answer.extend(&question[12..at + 5]);
        for data in data {
            // The name of the question, its kind, class IN, no time to live.
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1, 0, 0, 0, 0, 0, u8::try_from(data.len()).unwrap()]);
            answer.extend(data);
        }
        Some(answer)
    }
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().unwrap();
    assert!(done.status.success(), "ip {arguments:?}: {done:?}");
}
