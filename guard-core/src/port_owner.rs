//! Who listens on a TCP port: `/proc/net/tcp` names the socket, and the
//! processes' descriptors say whose it is.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;

use crate::process_details::user_name;
use crate::process_table::{Pid, ProcessTable, split_arguments};

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    inode: u64,
    uid: u32,
}

/// The sockets that listen on `port`, on any address.
///
/// # Errors
/// When `/proc/net/tcp` cannot be read.
pub fn listeners(port: u16) -> io::Result<Vec<Listener>> {
    let mut found = parse(&fs::read_to_string("/proc/net/tcp")?, port);
    // Without IPv6 there is no such file.
    if let Ok(text) = fs::read_to_string("/proc/net/tcp6") {
        found.extend(parse(&text, port));
    }
    Ok(found)
}

fn parse(text: &str, port: u16) -> Vec<Listener> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (_, local_port) = fields.next()?.rsplit_once(':')?;
            let is_listening = fields.nth(1)? == "0A";
            let uid = fields.nth(3)?.parse().ok()?;
            let inode = fields.nth(1)?.parse().ok()?;
            let here = u16::from_str_radix(local_port, 16) == Ok(port);
            (is_listening && here).then_some(Listener { inode, uid })
        })
        .collect()
}

/// Does the process hold one of these sockets? `None` if it may not be looked
/// at.
#[must_use]
pub fn holds(pid: Pid, listeners: &[Listener]) -> Option<bool> {
    let folder = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
        Err(_) => return Some(false),
    };
    Some(folder.filter_map(Result::ok).any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| {
            let inode = target
                .as_os_str()
                .as_bytes()
                .strip_prefix(b"socket:[")
                .and_then(|rest| rest.strip_suffix(b"]"))
                .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
            inode.is_some_and(|inode| listeners.iter().any(|listener| listener.inode == inode))
        })
    }))
}

/// Who holds these sockets, in words: PID, command, user; whatever can be told.
#[must_use]
pub fn name_holders(table: &ProcessTable, listeners: &[Listener]) -> String {
    holder_of(table, listeners).unwrap_or_else(|| {
        let users: BTreeSet<String> = listeners
            .iter()
            .map(|listener| user_name(listener.uid))
            .collect();
        let users: Vec<String> = users.into_iter().collect();
        format!(
            "a process of user {} that cannot be seen from here",
            users.join(", ")
        )
    })
}

/// The same, if it can be seen.
#[must_use]
pub fn holder_of(table: &ProcessTable, listeners: &[Listener]) -> Option<String> {
    let mut holders = Vec::new();
    let _ = table.for_each(|pid, block| {
        if holds(pid, listeners) == Some(true) {
            holders.push((pid, shown_command(block)));
        }
    });
    // A server and its forked children hold the same socket: the first will do.
    let (pid, command) = holders.first()?;
    let user = table.credentials(*pid).ok().flatten().map_or_else(
        || "unknown".to_owned(),
        |credentials| user_name(credentials.uid),
    );
    Some(format!("PID {pid} ({command}), user {user}"))
}

fn shown_command(block: &[u8]) -> String {
    const ENOUGH: usize = 80;
    let words: Vec<String> = split_arguments(block)
        .into_iter()
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let line: String = words
        .join(" ")
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    if line.chars().count() > ENOUGH {
        format!("{}…", line.chars().take(ENOUGH).collect::<String>())
    } else {
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn only_listeners_on_the_port_are_found() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0\n\
            1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0 100 0\n\
            2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0\n";
        assert_eq!(
            parse(text, 8080),
            [Listener {
                inode: 4711,
                uid: 1000
            }]
        );
        assert_eq!(parse(text, 81), []);
    }

    #[test]
    fn the_holder_is_named() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let listening = listeners(port).unwrap();
        assert_eq!(listening.len(), 1);
        assert_eq!(holds(Pid::own(), &listening), Some(true));
        assert_ne!(holds(Pid::new(1).unwrap(), &listening), Some(true));
    }
}
