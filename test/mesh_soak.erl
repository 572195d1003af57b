%%% What a long run is measured by: samples of a VM from outside, whether a figure grows, a plot.
-module(mesh_soak).

-export([figures/0, probes/0, sample/2, trend/2, write/2]).

-define(POOL, macula_gateway_mesh).
%% A table of this many lines is what a slope is fitted to at most: its work grows with the square.
-define(FITTED, 200).
-define(WIDTH, 900).
-define(HEIGHT, 170).
-define(MARGIN, 60).
-define(PROBES, 20).

%% What must not grow, and the grain of each: one step of it that means nothing.
figures() -> [rss_kib, memory_kib, fds, threads, tasks, latency_us].

%% Four carriers of the VM's allocators, or arenas of libc's, of 512 KiB and more.
grain(rss_kib) -> 4_096;
grain(memory_kib) -> 1_024;
%% A connection that comes while another one lingers.
grain(fds) -> 4;
grain(threads) -> 4;
grain(tasks) -> 12;
%% A machine that is busy with something else.
grain(latency_us) -> 5_000.

%% The messages that a sample sends itself.
probes() -> ?PROBES.

%% Right after a collection of garbage: when the last one was must not decide. The latency is that
%% of a confirmed message to `Target', the median of some.
sample(Vm, Target) ->
    Latency = mesh_vm:call(Vm, mesh_callers, latency_us, [Target, ?PROBES]),
    Rss = mesh_vm:memory_kib(Vm),
    Total = mesh_vm:call(Vm, erlang, memory, [total]),
    {ok, #{runtime_tasks := Tasks}} = mesh_vm:call(Vm, get_stats, [?POOL]),
    (mesh_vm:footprint(Vm))#{
        ms => erlang:monotonic_time(millisecond),
        rss_kib => Rss,
        memory_kib => Total div 1_024,
        tasks => Tasks,
        latency_us => Latency
    }.

%% How much a figure has grown over the samples by the line of Theil and Sen, which a few samples
%% far off do not move, and how far off its line it is.
trend(Figure, Samples) ->
    Points = [{maps:get(ms, Sample), maps:get(Figure, Sample)} || Sample <- thin(Samples)],
    Slopes = [
        (Y2 - Y1) / (X2 - X1)
     || {X1, Y1} <- Points, {X2, Y2} <- Points, X2 > X1
    ],
    Slope = median(Slopes),
    Level = median([Y - Slope * X || {X, Y} <- Points]),
    Noise = 4 * median([abs(Y - Slope * X - Level) || {X, Y} <- Points]),
    {First, _} = hd(Points),
    {Last, _} = lists:last(Points),
    #{growth => Slope * (Last - First), noise => Noise, grain => grain(Figure)}.

thin(Samples) ->
    Step = (length(Samples) + ?FITTED - 1) div ?FITTED,
    [Sample || {N, Sample} <- lists:enumerate(Samples), N rem Step =:= 0].

median(Values) ->
    lists:nth((length(Values) + 1) div 2, lists:sort(Values)).

%%% Files

%% `soak.csv' and `soak.svg'.
write(Dir, [#{ms := Start} | _] = Samples) ->
    ok = filelib:ensure_dir(filename:join(Dir, "soak.csv")),
    Head = lists:join(",", ["seconds" | [atom_to_list(Figure) || Figure <- figures()]]),
    Lines = [
        lists:join(",", [io_lib:format("~.1f", [(Ms - Start) / 1_000]) | values(Sample)])
     || #{ms := Ms} = Sample <- Samples
    ],
    ok = file:write_file(filename:join(Dir, "soak.csv"), lists:join("\n", [Head | Lines]) ++ "\n"),
    file:write_file(filename:join(Dir, "soak.svg"), plot(Samples)).

values(Sample) -> [integer_to_list(maps:get(Figure, Sample)) || Figure <- figures()].

%% A strip for each figure, from 0 to its largest value, over the time of the run.
plot(Samples) ->
    Height = ?HEIGHT * length(figures()),
    [
        io_lib:format(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ~b ~b\" "
            "font-family=\"sans-serif\" font-size=\"12\">~n"
            "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>~n",
            [?WIDTH, Height]
        ),
        [
            strip(Figure, N * ?HEIGHT, Samples)
         || {N, Figure} <- lists:zip(lists:seq(0, length(figures()) - 1), figures())
        ],
        "</svg>\n"
    ].

strip(Figure, Top, Samples) ->
    Values = [maps:get(Figure, Sample) || Sample <- Samples],
    Most = max(1, lists:max(Values)),
    #{ms := Start} = hd(Samples),
    #{ms := End} = lists:last(Samples),
    {Width, Height} = {?WIDTH - 2 * ?MARGIN, ?HEIGHT - ?MARGIN},
    Points = [
        io_lib:format("~.1f,~.1f ", [
            ?MARGIN + Width * (Ms - Start) / max(1, End - Start),
            Top + 40 + Height * (1 - maps:get(Figure, Sample) / Most)
        ])
     || #{ms := Ms} = Sample <- Samples
    ],
    io_lib:format(
        "<text x=\"~b\" y=\"~b\">~s: ~b to ~b, ~b s</text>~n"
        "<path d=\"M~b ~b v~b h~b\" fill=\"none\" stroke=\"gray\"/>~n"
        "<polyline points=\"~s\" fill=\"none\" stroke=\"steelblue\"/>~n",
        [
            ?MARGIN,
            Top + 25,
            Figure,
            lists:min(Values),
            Most,
            (End - Start) div 1_000,
            ?MARGIN,
            Top + 40,
            Height,
            Width,
            Points
        ]
    ).
