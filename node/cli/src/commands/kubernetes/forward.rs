//! A port of this machine that leads to a port of any member that serves, through the API server.
//!
//! A task owns the listener and one task for each connection; they end with the [`Forward`]. Each
//! connection is led to one Pod and ends with it; the next one is led to another. Connections are
//! at most [`CONNECTIONS_MAX`]; what is beyond waits to be accepted.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, Portforwarder};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::connect::Connection;
use super::pods::{Choice, nobody, selector, serving};
use crate::failure::{advised, because};

/// Connections that are led on at once.
const CONNECTIONS_MAX: usize = 64;
/// How long the API server may take to reach a Pod, before another one is asked.
const REACH_LIMIT: Duration = Duration::from_secs(3);
/// After no connection could be accepted: files may be closed until then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections go, and why the last one could not.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// The Pod of the last connection.
    pub(super) through: Option<String>,
    /// Why one could not be led on, since the last that could.
    pub(super) trouble: Option<String>,
}

/// A port that leads to a cluster, until it is dropped.
pub(super) struct Forward {
    address: SocketAddr,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Forward {
    /// Opens one. `local_port` 0 is any that is free.
    pub(super) async fn open(
        connection: &Connection,
        cluster: &str,
        port: u16,
        local_port: u16,
    ) -> anyhow::Result<Self> {
        let (sender, state) = watch::channel(State::default());
        let way = Way {
            pods: connection.all(),
            members: ListParams::default().labels(&selector(cluster)),
            port,
            choice: Mutex::default(),
            state: sender,
        };
        // What does not work at all is said here, by its name.
        let pods = connection.member_pods(cluster).await?;
        if serving(&pods).is_empty() {
            return Err(nobody(cluster, &pods));
        }
        if let Err(error) = way.reach(&serving(&pods)).await {
            return Err(match error {
                Unreached::Kube(error) => {
                    connection.refused("get and create", "pods/portforward", error)
                }
                Unreached::Late(pod) => advised(
                    format!("the API server does not reach {pod} in {REACH_LIMIT:?}"),
                    "see that `kubectl port-forward` works to it",
                ),
            });
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local_port)).await;
        let listener = listener.map_err(|error| {
            let what = format!("127.0.0.1:{local_port} cannot be listened on");
            because(error, what, "choose another --local-port, or leave it out")
        })?;
        Ok(Self {
            address: listener.local_addr()?,
            state,
            task: tokio::spawn(serve(listener, Arc::new(way))),
        })
    }

    /// Where it is: a name that is in the members' certificates, and the port.
    pub(super) fn endpoint(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Why the last connection could not be led on, if it could not.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state.borrow().trouble.clone()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts connections. Dropped, it ends all of them.
async fn serve(listener: TcpListener, way: Arc<Way>) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut running = JoinSet::new();
    while let Ok(seat) = seats.clone().acquire_owned().await {
        while running.try_join_next().is_some() {}
        let accepted = match listener.accept().await {
            Ok((accepted, _)) => accepted,
            Err(error) => {
                way.troubled(format!("no connection can be accepted: {error}"));
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let way = way.clone();
        running.spawn(async move {
            way.lead(accepted).await;
            drop(seat);
        });
    }
}

/// Why a Pod was not reached.
enum Unreached {
    Kube(kube::Error),
    Late(String),
}

impl Unreached {
    fn text(&self, pod: &str) -> String {
        match self {
            Self::Kube(error) => format!("{pod}: {error}"),
            Self::Late(pod) => format!("{pod}: not reached in {REACH_LIMIT:?}"),
        }
    }
}

/// How connections get to a member.
struct Way {
    pods: Api<Pod>,
    members: ListParams,
    port: u16,
    choice: Mutex<Choice>,
    state: watch::Sender<State>,
}

impl Way {
    /// Leads one connection, until one of its ends closes it.
    async fn lead(&self, mut local: TcpStream) {
        // Small frames are not kept back; where that cannot be said they are.
        let _ = local.set_nodelay(true);
        let pods = match timeout(REACH_LIMIT, self.pods.list(&self.members)).await {
            Ok(Ok(pods)) => pods.items,
            Ok(Err(error)) => return self.troubled(format!("the Pods cannot be listed: {error}")),
            Err(_) => return self.troubled("the API server does not answer".to_owned()),
        };
        let serving = serving(&pods);
        if serving.is_empty() {
            return self.troubled("no member is ready".to_owned());
        }
        let Ok((pod, mut forwarder)) = self.reach(&serving).await else {
            return;
        };
        let Some(mut remote) = forwarder.take_stream(self.port) else {
            return;
        };
        let refused = forwarder.take_error(self.port);
        let refused = async {
            match refused {
                Some(refused) => match refused.await {
                    Some(text) => text,
                    // The connection was led; its end is seen by the copying.
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        // What of the two is dropped has nothing to lose: the connection ends with either.
        tokio::select! {
            _ = copy_bidirectional(&mut local, &mut remote) => {}
            text = refused => {
                self.choice().failed(&pod);
                self.troubled(format!("{pod}: {}", text.trim()));
            }
        }
        forwarder.abort();
    }

    /// The first of these that is reached; the last error when none is.
    async fn reach(&self, serving: &[String]) -> Result<(String, Portforwarder), Unreached> {
        let mut last = None;
        let order = self.choice().order(serving);
        for pod in order {
            let reached = timeout(REACH_LIMIT, self.pods.portforward(&pod, &[self.port])).await;
            let error = match reached {
                Ok(Ok(forwarder)) => {
                    self.choice().worked(&pod);
                    self.state.send_replace(State {
                        through: Some(pod.clone()),
                        trouble: None,
                    });
                    return Ok((pod, forwarder));
                }
                Ok(Err(error)) => Unreached::Kube(error),
                Err(_) => Unreached::Late(pod.clone()),
            };
            self.choice().failed(&pod);
            self.troubled(error.text(&pod));
            last = Some(error);
        }
        Err(last.unwrap_or_else(|| Unreached::Late("a member".to_owned())))
    }

    /// Held for a moment only. Whoever panicked with it left nothing half done.
    fn choice(&self) -> std::sync::MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn troubled(&self, trouble: String) {
        self.state
            .send_modify(|state| state.trouble = Some(trouble));
    }
}
