//! Who leads the group, as a value that can be followed.
//!
//! A task owns the value. It follows openraft's leader and role, and, while this replica leads a
//! new term, how far it has applied. Invariant: `me_leading` ⇒ this replica leads `term` as far
//! as it knows, and has applied everything that was committed before it led.

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Group;
use crate::types::{LogId, Member, Raft, member};

/// Who leads, as this replica knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader; None while an election is open.
    pub leader: Option<Member>,
    /// The newest term that this replica has voted in or heard of.
    pub term: u64,
    /// This replica leads, and has applied everything up to the first entry of its own term: its
    /// state includes whatever was committed before.
    pub me_leading: bool,
    /// There is a leader, and if it is this replica then `me_leading`. While false, requests are
    /// better kept for a moment than sent anywhere.
    pub ready: bool,
}

impl Group {
    /// Follows who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }
}

pub(super) fn follow(
    me: Member,
    raft: &Raft,
    mut applied: watch::Receiver<Option<LogId>>,
) -> (watch::Receiver<Leadership>, AbortHandle) {
    let mut server = raft.server_metrics();
    let (sender, receiver) = watch::channel(Leadership::default());
    let task = tokio::spawn(async move {
        loop {
            let (leading, leadership) = {
                let server = server.borrow_watched();
                let leading = server.state == ServerState::Leader
                    && server.current_leader == Some(me.replica.0);
                let own = &server.vote.leader_id;
                let applied_own = applied
                    .borrow_and_update()
                    .is_some_and(|applied| applied.leader_id == *own);
                let me_leading = leading && own.node_id == me.replica.0 && applied_own;
                let leader = server.current_leader.and_then(|id| {
                    let node = server.membership_config.get_node(&id);
                    node.map(|node| member(id, node))
                });
                let ready = if leading {
                    me_leading
                } else {
                    leader.is_some_and(|leader| leader != me)
                };
                (
                    leading,
                    Leadership {
                        leader,
                        term: own.term,
                        me_leading,
                        ready,
                    },
                )
            };
            sender.send_if_modified(|current| {
                let changed = *current != leadership;
                *current = leadership;
                changed
            });
            // Both arms are cancel-safe: they only tell that there is something newer.
            let alive = tokio::select! {
                changed = server.changed() => changed.is_ok(),
                changed = applied.changed(), if leading && !leadership.me_leading => changed.is_ok(),
            };
            if !alive {
                // The core is gone: nobody leads from here any more.
                sender.send_replace(Leadership {
                    term: leadership.term,
                    ..Leadership::default()
                });
                return;
            }
        }
    });
    (receiver, task.abort_handle())
}
