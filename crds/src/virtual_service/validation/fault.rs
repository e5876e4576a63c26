//! Injected faults (VS-126..VS-135).

use crate::validate::{Report, check};
use crate::virtual_service::{FaultAbort, FaultDelay, HTTPFaultInjection};

pub(super) fn check_fault(report: &mut Report, path: &str, fault: &HTTPFaultInjection) {
    if fault.delay.is_none() && fault.abort.is_none() {
        report.error(path, "", "must have at least one of delay and abort");
    }
    if let Some(delay) = &fault.delay {
        let FaultDelay {
            fixed_delay,
            exponential_delay,
            percentage,
            percent,
        } = delay;
        check::optional_duration(report, &format!("{path}.delay.fixedDelay"), fixed_delay.as_ref(), false);
        if exponential_delay.is_some() {
            report.error(
                &format!("{path}.delay.exponentialDelay"),
                "",
                "is not supported; use fixedDelay",
            );
        }
        check::percent(report, &format!("{path}.delay.percentage.value"), *percentage, true);
        check::within(report, &format!("{path}.delay.percent"), *percent, 0..=100);
    }
    if let Some(abort) = &fault.abort {
        let FaultAbort {
            http_status,
            grpc_status,
            http2_error,
            percentage,
        } = abort;
        check::within(report, &format!("{path}.abort.httpStatus"), *http_status, 200..=599);
        if let Some(status) = grpc_status {
            check::one_of(report, &format!("{path}.abort.grpcStatus"), status, &GRPC_STATUSES);
        }
        if http2_error.is_some() {
            report.error(
                &format!("{path}.abort.http2Error"),
                "",
                "is not supported; use httpStatus or grpcStatus",
            );
        }
        if http_status.is_some() && grpc_status.is_some() {
            report.error(
                &format!("{path}.abort"),
                "",
                "must have one of httpStatus and grpcStatus",
            );
        }
        if http_status.is_none() && grpc_status.is_none() && http2_error.is_none() {
            report.warn(&format!("{path}.abort: has no effect without httpStatus or grpcStatus"));
        }
        check::percent(report, &format!("{path}.abort.percentage.value"), *percentage, true);
    }
}

/// gRPC statuses by name, in the order of their numbers.
pub(crate) const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
