//! Makes the sockets of a served pod: each in its namespace, each with the options of its kind of leg.
//!
//! The only file of the data plane that dials. Chooses nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::netns::Netns;
use crate::sockets::local::is_local;
use crate::sockets::{self, Dial, DialError, Keepalive, LOCAL_CONGESTION, Options};

/// TCP options of the legs, from the configuration.
#[derive(Clone, Debug)]
pub(super) struct LegOptions {
    /// Keepalive of every leg.
    pub(super) keepalive: Keepalive,
    /// Congestion control of the tunnel leg, best first.
    pub(super) tunnel_congestion: Vec<String>,
    /// TCP_USER_TIMEOUT of the tunnel leg.
    pub(super) tunnel_user_timeout: Duration,
}

/// Dials from inside one pod.
#[derive(Clone, Debug)]
pub(super) struct Legs {
    from: From,
    options: LegOptions,
}

#[derive(Clone, Debug)]
enum From {
    /// With the pod's mark, and as any address.
    Pod { netns: Netns, mark: u32 },
    /// Without privilege: the process's own namespace, no mark, its own address; every address counts as the pod's.
    #[cfg(test)]
    Here,
    /// As [`From::Here`], but the process has no descriptor left.
    #[cfg(test)]
    Nowhere,
}

impl Legs {
    /// Dials from inside the pod's namespace, marked so that it is not captured again.
    pub(super) fn of_pod(netns: Netns, mark: u32, options: LegOptions) -> Self {
        Self { from: From::Pod { netns, mark }, options }
    }

    /// Dials without privilege, for tests over the loopback.
    #[cfg(test)]
    pub(super) fn here(options: LegOptions) -> Self {
        Self { from: From::Here, options }
    }

    /// The same without a descriptor left.
    #[cfg(test)]
    pub(super) fn nowhere(options: LegOptions) -> Self {
        Self { from: From::Nowhere, options }
    }

    /// To another pod's agent.
    pub(super) async fn tunnel(&self, to: SocketAddr) -> Result<TcpStream, DialError> {
        let congestion: Vec<&str> = self.options.tunnel_congestion.iter().map(String::as_str).collect();
        let options = Options {
            congestion: &congestion,
            keepalive: Some(self.options.keepalive),
            user_timeout: Some(self.options.tunnel_user_timeout),
        };
        self.dial(to, None, options).await
    }

    /// To the pod's own app, as the true client.
    pub(super) async fn app(&self, to: SocketAddr, client: IpAddr) -> Result<TcpStream, DialError> {
        // Both ends are on this node: one that goes resets the other, nothing has to be probed.
        self.dial(to, Some(client), Options { keepalive: None, ..self.local() }).await
    }

    /// To where the app was going, as the app would. No deadline but the kernel's.
    pub(super) async fn outside(&self, to: SocketAddr) -> Result<TcpStream, DialError> {
        // The kernel's own congestion control: this leg leaves the node, and without us the app would have had it.
        let options =
            Options { congestion: &[], keepalive: Some(self.options.keepalive), user_timeout: None };
        self.dial(to, None, options).await
    }

    /// Whether an address is one of the pod's, by the word of the kernel. Costs a dozen system calls.
    pub(super) fn is_pods_own(&self, ip: IpAddr) -> io::Result<bool> {
        match &self.from {
            From::Pod { netns, .. } => is_local(netns, ip),
            #[cfg(test)]
            From::Here => Ok(true),
            #[cfg(test)]
            From::Nowhere => Err(no_descriptor()),
        }
    }

    /// What an accepted local leg is set to.
    pub(super) fn local(&self) -> Options<'static> {
        Options { congestion: &LOCAL_CONGESTION, keepalive: Some(self.options.keepalive), user_timeout: None }
    }

    /// What the listener for tunnels is set to.
    pub(super) fn tunnel_listener<'a>(&self, congestion: &'a [&'a str]) -> Options<'a> {
        Options {
            congestion,
            keepalive: Some(self.options.keepalive),
            user_timeout: Some(self.options.tunnel_user_timeout),
        }
    }

    async fn dial(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        options: Options<'_>,
    ) -> Result<TcpStream, DialError> {
        match &self.from {
            From::Pod { netns, mark } => sockets::dial(netns, to, &Dial { mark: *mark, from, options }).await,
            #[cfg(test)]
            From::Here => {
                let connect = |source| DialError::Connect { to, source };
                let stream = TcpStream::connect(to).await.map_err(connect)?;
                stream.set_nodelay(true).map_err(connect)?;
                Ok(stream)
            }
            #[cfg(test)]
            From::Nowhere => Err(DialError::Socket { to, step: "socket", source: no_descriptor() }),
        }
    }
}

#[cfg(test)]
fn no_descriptor() -> io::Error {
    nix::errno::Errno::EMFILE.into()
}
