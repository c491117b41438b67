//! The other process of a measurement: this very program, started again to echo.
//!
//! It is told what to be by a hidden flag, and inherits no environment. Its standard input is one end of
//! a pair of Unix sockets. Over it goes one line each way, with a descriptor if there is memory to
//! share; afterwards it is only held open: the kernel closes it however the parent ends, and the child
//! ends with it.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use clap::ValueEnum;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::thread::Pid;

use super::Program;
use crate::Failure;

/// Longest line either way.
const LINE_BYTES_MAX: usize = 4096;

/// The child, as its parent has it. It ends when this is dropped.
pub(super) struct Process {
    child: Child,
    /// Held open: its end is the child's.
    _socket: UnixStream,
}

impl Process {
    /// Starts a program with a line that tells it what it must know, and perhaps a descriptor. Returns with
    /// the line by which it says that it is ready.
    pub(super) fn start(
        program: Program,
        line: &str,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(Self, String), Failure> {
        let cannot = |what: &str, why: io::Error| format!("cannot {what} the echoing process: {why}");
        let (ours, theirs) = UnixStream::pair().map_err(|why| cannot("connect to", why))?;
        let path = std::env::current_exe().map_err(|why| cannot("find the program of", why))?;
        let value = program.to_possible_value().expect("no program is skipped");
        let child = Command::new(path)
            .args(["bench", "transport", "--echo", value.get_name()])
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|why| cannot("start", why))?;
        let process = Self { child, _socket: ours.try_clone().map_err(|why| cannot("connect to", why))? };
        send(&ours, line, descriptor).map_err(|why| cannot("write to", why))?;
        let mut answer = String::new();
        BufReader::new(ours.take(LINE_BYTES_MAX as u64))
            .read_line(&mut answer)
            .map_err(|why| cannot("hear of", why))?;
        match answer.strip_suffix('\n') {
            Some(answer) => Ok((process, answer.to_owned())),
            // It has said why on standard error, which is ours.
            None => Err("the echoing process ended before it was ready".into()),
        }
    }
}

impl Process {
    /// Its first thread, which is the one that echoes.
    pub(super) fn thread(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing that it holds is worth an orderly end, and it may be asleep in a ring.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The parent, as the child has it.
pub(super) struct Parent {
    socket: UnixStream,
    /// What it has said.
    pub(super) line: String,
    /// What came with it.
    pub(super) descriptor: Option<OwnedFd>,
}

impl Parent {
    /// Hears what the parent has to say. From then on this process ends when the parent does.
    pub(super) fn meet() -> Result<Self, Failure> {
        let not_for_people = |why: io::Error| {
            format!("--echo is how this benchmark starts itself a second time; run it without ({why})")
        };
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(not_for_people)?;
        let socket = UnixStream::from(input);
        let (line, descriptor) = receive(&socket).map_err(not_for_people)?;
        let mut watched = socket.try_clone().map_err(not_for_people)?;
        std::thread::spawn(move || {
            // Nothing more is ever said: whatever this returns with, the parent is gone.
            let _ = watched.read(&mut [0]);
            std::process::exit(0);
        });
        Ok(Self { socket, line, descriptor })
    }

    /// Says that this process is ready to be measured.
    pub(super) fn ready(&mut self, line: &str) -> io::Result<()> {
        self.socket.write_all(format!("{line}\n").as_bytes())
    }
}

fn send(socket: &UnixStream, line: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let line = format!("{line}\n");
    assert!(line.len() <= LINE_BYTES_MAX, "lines are addresses and paths");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = &descriptor {
        let is_pushed = ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
        assert!(is_pushed, "there is room for one");
    }
    let sent = sendmsg(socket, &[IoSlice::new(line.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
    (&mut &*socket).write_all(&line.as_bytes()[sent..])
}

fn receive(socket: &UnixStream) -> io::Result<(String, Option<OwnedFd>)> {
    let (mut line, mut descriptor) = (Vec::new(), None);
    while line.last() != Some(&b'\n') {
        let mut bytes = [0; LINE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
                descriptor = descriptors.next().or(descriptor);
            }
        }
        if received.bytes == 0 || line.len() > LINE_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&bytes[..received.bytes]);
    }
    line.pop();
    let line = String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((line, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory is handed over with the line, and a peer that ends early is no line.
    #[test]
    fn a_line_and_a_descriptor_go_across() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (shared, mut other) = UnixStream::pair().expect("a pair");
        send(&ours, "an address", Some(shared.as_fd())).expect("sent");
        let (line, descriptor) = receive(&theirs).expect("received");
        assert_eq!(line, "an address");
        let mut received = UnixStream::from(descriptor.expect("it was sent"));
        received.write_all(b"x").expect("it is a socket");
        let mut byte = [0];
        other.read_exact(&mut byte).expect("it is the same socket");
        assert_eq!(byte, *b"x");

        send(&ours, "", None).expect("sent");
        assert!(matches!(receive(&theirs), Ok((line, None)) if line.is_empty()));
        drop(ours);
        assert!(receive(&theirs).is_err());
    }
}
