"""When does a ticket win? The verdict over training seeds, decided here and nowhere else.

    x = log(value), where the metric is positive and its margin m a share, w = log(1 + m);
        else x = value and w the margin as a number; the sign turned where higher is better
    d = x_ticket - x_dense of the same seed          a diverged training: d = infinity
    s2_l = (d0 p + (n - 1) v_l) / (d0 + n - 1)       moderated variance of d at level l
    upper = mean d_l + t(0.95, d0 + n - 1) sqrt(s2_l / n)                  lower likewise

A level *matches* where upper < w and is *worse* where lower > w. Levels are read upwards and the
reading stops at the first that does not match: the last that does is the *frontier*. Only there is
the ticket held against its controls. Torch-free, so that anybody's results are judged at once.

``losses`` gathers rows, ``sequence`` finds the frontier, ``opponents`` asks the controls,
``learning`` whether dense has learnt anything, ``planning`` how many seeds would decide,
``comparisons`` holds searches against each other, ``decide`` puts it together, ``tables`` reads
anybody's CSV. Source: docs/method.md, "The verdict".
"""
