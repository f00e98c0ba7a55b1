//! A call between two nodes, beside a round trip over bare TCP.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::peer::{Lane, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::nodes::{ECHO, Nodes};
use crate::report::{Report, Row, quantile};

const BODY: [u8; 128] = [7; 128];
const DEADLINE: Duration = Duration::from_secs(10);

pub async fn measure(run: Duration, report: &mut Report) {
    let nodes = Nodes::start(3).await;
    // In turns, so that a machine whose speed drifts spoils neither side.
    let (mut calls, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        bare.append(&mut round_trips(run / 4).await);
        calls.append(&mut peer_calls(&nodes, run / 4).await);
    }
    report.row(Row {
        name: "a call between nodes, 128 bytes".to_owned(),
        value: quantile(&mut calls, 0.5),
        unit: "µs",
        baseline: quantile(&mut bare, 0.5),
        beside: "a round trip over bare TCP",
        more: format!("; p99 {:.0} against {:.0}", quantile(&mut calls, 0.99), quantile(&mut bare, 0.99)),
    });
    nodes.stop().await;
}

/// Microseconds of each, one after the other.
async fn peer_calls(nodes: &Nodes, run: Duration) -> Vec<f64> {
    let (from, to) = (&nodes.0[1], nodes.0[2].id);
    let (began, mut took) = (Instant::now(), Vec::new());
    while began.elapsed() < run {
        let started = Instant::now();
        from.client.call(to, Lane::Bodies, ECHO, Bytes::from_static(&BODY), DEADLINE).await.unwrap();
        took.push(started.elapsed().as_secs_f64() * 1e6);
    }
    took
}

async fn round_trips(run: Duration) -> Vec<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut echoing = tokio::task::JoinSet::new();
    echoing.spawn(async move {
        let (mut socket, _from) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut body = BODY;
        while socket.read_exact(&mut body).await.is_ok() {
            socket.write_all(&body).await.unwrap();
        }
    });
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (began, mut took, mut body) = (Instant::now(), Vec::new(), BODY);
    while began.elapsed() < run {
        let started = Instant::now();
        socket.write_all(&BODY).await.unwrap();
        socket.read_exact(&mut body).await.unwrap();
        took.push(started.elapsed().as_secs_f64() * 1e6);
    }
    took
}
