//! What the server says, in systemd's protocol: what to keep, that it serves, that it lives.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::net::RecvFlags;

use super::Keeper;
use super::talk::Role;
use crate::keeper::control::Reply;
use crate::keeper::protocol::{self, Descriptors, Message, wire};

impl Keeper {
    /// Follows all that was said so far.
    pub(super) fn hear(&mut self) {
        let mut buffer = [0; protocol::MESSAGE_MAX];
        loop {
            let socket = self.sockets.notify.as_fd();
            let Ok(mut got) = wire::receive(socket, &mut buffer, RecvFlags::DONTWAIT) else {
                return;
            };
            if got.truncated {
                self.fail(
                    "a message or a descriptor was cut off: raise the limit of open files".into(),
                );
            }
            let datagram = buffer.get(..got.length).unwrap_or_default();
            let heard = Message::parse(datagram);
            let done = heard.and_then(|message| self.on_message(message, &mut got.fds));
            if let Err(error) = done {
                self.fail(format!("a message was not followed: {error}"));
            }
        }
    }

    fn on_message(
        &mut self,
        message: Message,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(), protocol::Error> {
        let now = Instant::now();
        if let Some(silence) = message.watchdog {
            self.silence = silence;
            self.course.set_silence(silence);
        }
        if message.alive {
            self.course.alive(now);
        }
        if message.stopping {
            self.course.stopping();
        }
        if let Some(status) = message.status {
            self.status = status;
        }
        match message.descriptors {
            Descriptors::None => {}
            Descriptors::Remove(name) => self.shelf.remove(&name),
            Descriptors::Store(name) => match fds.pop() {
                Some(fd) if fds.is_empty() => self.shelf.put(name, fd)?,
                _ => self.fail(format!("one descriptor was expected with the name {name}")),
            },
        }
        if message.ready && self.course.is_up() {
            let deed = self.course.ready(now);
            deed.into_iter().for_each(|deed| self.act(deed));
            if self.course.is_ready() {
                self.pass_reread();
                self.tell(Role::Front, &Reply::Ready(String::new()));
            }
        }
        Ok(())
    }
}
