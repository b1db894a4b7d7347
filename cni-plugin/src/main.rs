//! `adit-cni`: the chained CNI plugin. Reads what the runtime asks, asks the agent, prints what the runtime expects.
//!
//! `spec` knows the specification (environment, JSON, versions, error codes), `call` the socket; the order of things
//! is here. Keeps nothing but word of the pods that start while the agent is away, and of having been called where its
//! entry asks for that; decides no enrolment; prints nothing but the result on stdout.
//!
//! With arguments it is its own installer (`install`).
//!
//! Exit codes: 0 done, 1 with a CNI error object on stdout; of the installer 1 not done, 64 wrong command line.

mod call;
mod install;
mod missed;
mod spec;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use adit_proto::cni::{Code, NAMESPACES_FILE, NAMESPACES_LEN_MAX, Namespaces, Reply, Request};

use crate::call::{Patience, call};
use crate::install::Command;
use crate::spec::{Asked, Config, Environment, Error, Unreachable, Verb};

/// The exit code for a wrong command line (sysexits.h, EX_USAGE).
const USAGE_EXIT: u8 = 64;
/// The longest input, in bytes: a pod's annotations are at most 256 KiB, of which JSON may make six times as much;
/// the result of other plugins is a few KiB.
const STDIN_LEN_MAX: u64 = 4 * 1024 * 1024;
/// How long DEL and GC try to reach the agent: what they leave, the agent clears away by itself.
const RELEASE_DIAL: Duration = Duration::from_millis(500);
/// How long DEL and GC wait for the answer; the agent answers a DEL within 2 s.
const RELEASE_ANSWER: Duration = Duration::from_secs(5);
/// How long an agent that was reached may take over an ADD. It gives up by itself after 25 s.
const ADD_ANSWER: Duration = Duration::from_secs(30);
/// The same, where nothing in the namespace is enrolled: then a frozen agent must not hold up its pods. Longer than a working
/// one takes to write down that something is (1 s).
const UNENROLLED_ANSWER: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    arguments.next();
    match install::asked(arguments) {
        Ok(Some(command)) => return obey(command),
        // The runtime passes none.
        Ok(None) => {}
        Err(error) => {
            log(&error.to_string());
            return ExitCode::from(USAGE_EXIT);
        }
    }
    let mut input = Vec::new();
    let read = io::stdin().take(STDIN_LEN_MAX + 1).read_to_end(&mut input);
    let environment = Environment::read();
    let (out, code) = match read.map_err(Error::stdin).and_then(|_| answer(&environment, &input)) {
        Ok(printed) => (printed, ExitCode::SUCCESS),
        Err(error) => (error.print(spec::version_asked(&input)), ExitCode::FAILURE),
    };
    // A runtime that closed the pipe gets no answer; there is nobody left to tell.
    match io::stdout().write_all(out.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Does what people or the DaemonSet ask.
fn obey(command: Command) -> ExitCode {
    let done = match command {
        Command::Version => writeln!(io::stdout(), "adit-cni {}", adit_version::version!()).map_err(|_| None),
        Command::Help => write!(io::stdout(), "{}", install::USAGE).map_err(|_| None),
        Command::Install(wanted) => install::install(wanted).map_err(Some),
        Command::Uninstall(dirs, then) => install::uninstall(dirs, then).map_err(Some),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard output is closed nobody reads.
            if let Some(error) = error {
                log(&error.to_string());
            }
            ExitCode::FAILURE
        }
    }
}

/// What to print for one call of the runtime.
fn answer(environment: &Environment, input: &[u8]) -> Result<String, Error> {
    if u64::try_from(input.len()).unwrap_or(u64::MAX) > STDIN_LEN_MAX {
        return Err(Error::new(
            Code::Decode,
            "standard input is too long",
            format!("more than {STDIN_LEN_MAX} bytes"),
        ));
    }
    let verb = environment.verb()?;
    if let Verb::Version = verb {
        return spec::print_version(input);
    }
    let asked = Asked::parse(verb, input)?;
    mark_call(&asked);
    match verb {
        Verb::Add => add(environment, &asked),
        Verb::Del => del(environment, &asked),
        Verb::Check => check(environment, &asked),
        Verb::Gc => gc(&asked),
        Verb::Status => status(&asked),
        Verb::Version => spec::print_version(input),
    }
}

fn add(environment: &Environment, asked: &Asked) -> Result<String, Error> {
    let config = asked.config()?;
    let result = asked.result()?;
    let Some(add) = environment.add(asked, &result)? else {
        // Not a pod of Kubernetes: nothing that could be enrolled.
        return Ok(result.print());
    };
    let namespace = add.pod.namespace.clone();
    ask_for_pod(&config, &namespace, &Request::Add(add))?;
    Ok(result.print())
}

fn check(environment: &Environment, asked: &Asked) -> Result<String, Error> {
    let config = asked.config()?;
    // What the other plugins made is theirs to check; that there is something to be chained to is ours.
    asked.result()?;
    if let (Some(namespace), check) = environment.check()? {
        // An agent that has not noticed yet holds it open and finds all well in it; one that has, knows of no pod.
        if !Path::new(&check.netns).exists() {
            return Err(Error::environment("CNI_NETNS", &format!("is {}, which is not there", check.netns)));
        }
        ask_for_pod(&config, &namespace, &Request::Check(check))?;
    }
    Ok(String::new())
}

/// Asks the agent what a pod's start or check depends on, unless its namespace passes without.
fn ask_for_pod(config: &Config, namespace: &str, request: &Request) -> Result<(), Error> {
    if config.excludes(namespace) {
        return Ok(());
    }
    let passes = || {
        config.unreachable == Unreachable::RefuseEnrolled && known_unenrolled(&config.state_dir, namespace)
    };
    let patience = Patience { dial: config.timeout, answer: ADD_ANSWER };
    let answer = if passes() {
        let hasty = Patience { dial: Duration::ZERO, answer: UNENROLLED_ANSWER };
        match call(&config.socket, request, hasty) {
            Err(_) if passes() => {
                if let Request::Add(add) = request
                    && let Err(error) = missed::leave(&config.socket, add)
                {
                    log(&format!("the agent will not find this pod when it is back: {error}"));
                }
                return Ok(());
            }
            // The agent has learnt meanwhile that something in the namespace is enrolled: perhaps by this very pod.
            Err(_) => call(&config.socket, request, patience),
            answered => answered,
        }
    } else {
        call(&config.socket, request, patience)
    };
    match answer {
        Ok(Reply::Ok | Reply::Status { .. } | Reply::Removal { .. } | Reply::Successor { .. }) => Ok(()),
        Ok(Reply::Failed(failure)) => Err(failure.into()),
        Err(error) => Err(Error::agent(&error)),
    }
}

/// DEL clears away as much as it can and succeeds: the pod goes, whatever the agent does.
fn del(environment: &Environment, asked: &Asked) -> Result<String, Error> {
    let config = asked.config()?;
    let del = environment.del()?;
    let patience = Patience { dial: RELEASE_DIAL, answer: RELEASE_ANSWER };
    if let Err(error) = missed::withdraw(&config.socket, &del.container_id) {
        log(&format!("cannot remove what was left for the agent: {error}"));
    }
    match call(&config.socket, &Request::Del(del), patience) {
        Ok(Reply::Ok | Reply::Status { .. } | Reply::Removal { .. } | Reply::Successor { .. }) => {}
        Ok(Reply::Failed(failure)) => log(&failure.message),
        Err(error) => log(&error.to_string()),
    }
    Ok(String::new())
}

fn gc(asked: &Asked) -> Result<String, Error> {
    let config = asked.config()?;
    let gc = asked.valid_attachments()?;
    let patience = Patience { dial: RELEASE_DIAL, answer: RELEASE_ANSWER };
    match call(&config.socket, &Request::Gc(gc), patience) {
        Ok(Reply::Ok | Reply::Status { .. } | Reply::Removal { .. } | Reply::Successor { .. }) => {
            Ok(String::new())
        }
        Ok(Reply::Failed(failure)) => Err(failure.into()),
        Err(error) => Err(Error::agent(&error)),
    }
}

/// Good whenever this plugin and its configuration are sound. The agent is not asked: a bad STATUS makes the node
/// NotReady, and then the agent's own pod could not start.
fn status(asked: &Asked) -> Result<String, Error> {
    match asked.config() {
        Ok(_) => Ok(String::new()),
        Err(error) => Err(Error::new(Code::NotAvailable, "configuration is not valid", error.details)),
    }
}

/// Leaves word that the runtime calls the plugin, where the entry wants to know. No call depends on it.
fn mark_call(asked: &Asked) {
    let Some(mark) = asked.config().ok().and_then(|config| config.mark_calls) else {
        return;
    };
    if !mark.exists()
        && let Err(error) = File::create(&mark)
    {
        log(&format!("the installer will not know of this call: cannot make {}: {error}", mark.display()));
    }
}

/// Whether the agent, when it last ran, knew that nothing in this namespace is enrolled.
fn known_unenrolled(state_dir: &Path, namespace: &str) -> bool {
    let Ok(file) = File::open(state_dir.join(NAMESPACES_FILE)) else {
        return false;
    };
    let bound = u64::try_from(NAMESPACES_LEN_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    file.take(bound).read_to_end(&mut bytes).is_ok()
        && Namespaces::parse(&bytes).is_some_and(|known| known.passes(namespace))
}

fn log(line: &str) {
    // Standard error goes to the runtime's log; if it is closed, nothing is lost that anybody reads.
    let _ = writeln!(io::stderr(), "adit-cni: {line}");
}
