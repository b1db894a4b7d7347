use super::*;

fn dial(errno: Errno) -> DialError {
    let to = "10.0.0.1:80".parse().unwrap();
    DialError::Socket { to, step: "socket", source: errno.into() }
}

#[test]
fn a_descriptor_or_memory_that_the_agent_lacks_is_its_own_limit_and_nobody_elses_fault() {
    for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM] {
        let error = CarryError::Dial(dial(errno));
        assert_eq!(error.reason(), Reason::MemoryLimit);
        assert!(error.detail().contains(&format!("os error {}", errno as i32)), "{}", error.detail());
        let failure = CarryError::Tunnel(Rc::new(TunnelError::Dial(dial(errno)))).failure(false);
        assert!(!is_of_the_endpoint(failure) && !is_of_the_network(failure) && !ends_tunnel(failure));
        let error = ServeError::App(dial(errno));
        assert_eq!((error.reason(), error.status()), (Reason::MemoryLimit, StatusCode::SERVICE_UNAVAILABLE));
    }
    assert_eq!(CarryError::Dial(dial(Errno::EACCES)).reason(), Reason::Unreachable);
    assert_eq!(ServeError::App(dial(Errno::EACCES)).reason(), Reason::AppRefused);
}
