%%% What the campaigns run in the other VM: callers that send numbered frames by every way there is
%%% and keep what they were told, a watch on the pool's size, and a node that listens.
-module(mesh_callers).

-export([start/3, start/4, stop/0, kill/0, latency_us/2]).
-export([listen/4, renew/0]).

-define(POOL, macula_gateway_mesh).
-define(TABLE, ?MODULE).
-define(NODE, mesh_callers_node).
%% The payloads: a packet's worth, several packets', and what travels on a stream of its own.
-define(SIZES, [8, 200, 1_000, 4_000, 20_000, 100_000]).
%% Between two sends of one caller, so that a campaign's messages stay countable.
-define(PAUSE_MS, 3).
-define(CONFIRM_MS, 4_000).

%%% Callers

%% `Count' callers of these nodes, `[{NodeId, Address}]', whose frames are numbered from `First'.
start(Targets, Count, First) -> start(Targets, Count, First, true).

%% `Keeps': whether what was confirmed is kept to be told, which takes memory for each message.
start(Targets, Count, First, Keeps) ->
    Self = self(),
    Owner = spawn(fun() -> own(Self, Targets, Count, First, Keeps) end),
    receive
        {Owner, started} -> ok
    end.

%% Ends all callers in order. How many messages were given to the pool, the next number, which
%% frames were confirmed and when (`[{Number, Target, Ms}]'), and how large the pool ever was.
stop() ->
    Monitor = monitor(process, ?MODULE),
    ?MODULE ! {stop, self()},
    receive
        {?MODULE, Report} ->
            _ = demonitor(Monitor, [flush]),
            Report;
        {'DOWN', Monitor, process, _, Reason} ->
            error(Reason)
    end.

%% Kills a caller that waits for a connection, and starts another one.
kill() ->
    ?MODULE ! kill,
    ok.

%% How long a confirmed message takes, the median of `Count'.
latency_us({NodeId, Address}, Count) ->
    Frame = <<1, 1, 0, 0, 7:32, "a probe">>,
    Times = [
        element(1, timer:tc(fun() -> ?POOL:send(?POOL, NodeId, Address, Frame, ?CONFIRM_MS) end))
     || _ <- lists:seq(1, Count)
    ],
    lists:nth((Count + 1) div 2, lists:sort(Times)).

own(Starter, Targets, Count, First, Keeps) ->
    true = register(?MODULE, self()),
    ?TABLE = ets:new(?TABLE, [named_table, public, {write_concurrency, true}]),
    Numbers = atomics:new(2, []),
    ok = atomics:put(Numbers, 1, First - 1),
    Work = fun() -> call(Targets, Numbers, Keeps) end,
    Callers = [spawn_monitor(Work) || _ <- lists:seq(1, Count)],
    Watch = spawn(fun() -> watch_size(0) end),
    Starter ! {self(), started},
    attend(Targets, Numbers, Callers, mortal(Targets), Watch).

attend(Targets, Numbers, Callers, Mortal, Watch) ->
    receive
        kill ->
            exit(Mortal, kill),
            attend(Targets, Numbers, Callers, mortal(Targets), Watch);
        {stop, From} ->
            exit(Mortal, kill),
            [Caller ! stop || {Caller, _} <- Callers],
            Ends = [
                receive
                    {'DOWN', Monitor, process, _, Reason} -> Reason
                end
             || {_, Monitor} <- Callers
            ],
            Largest = largest(Watch),
            From !
                {?MODULE, #{
                    given => atomics:get(Numbers, 2),
                    next => atomics:get(Numbers, 1) + 1,
                    confirmed => ets:tab2list(?TABLE),
                    largest => Largest,
                    ends => lists:usort(Ends)
                }}
    end.

call(Targets, Numbers, Keeps) ->
    receive
        stop -> ok
    after ?PAUSE_MS ->
        {NodeId, Address} = pick(Targets),
        Number = atomics:add_get(Numbers, 1, 1),
        Frame = mesh_peer:frame(Number, pick(?SIZES)),
        Told = send(rand:uniform(10), NodeId, Address, Frame, Numbers),
        Kept = {Number, NodeId, erlang:system_time(millisecond)},
        Keeps andalso Told =:= confirmed andalso ets:insert(?TABLE, Kept),
        call(Targets, Numbers, Keeps)
    end.

%% Counts the messages that the pool has to account for, and says what the caller was told.
send(Way, NodeId, Address, Frame, Numbers) when Way =< 4 ->
    given(Numbers),
    ?POOL:send_async(?POOL, NodeId, Address, Frame);
send(Way, NodeId, Address, Frame, Numbers) when Way =< 8 ->
    given(Numbers),
    try ?POOL:send(?POOL, NodeId, Address, Frame, ?CONFIRM_MS) of
        ok -> confirmed;
        {error, _} -> refused
    catch
        %% The server is being restarted.
        exit:_ -> refused
    end;
send(_Way, NodeId, Address, Frame, Numbers) ->
    try ?POOL:get_or_create_connection(?POOL, NodeId, Address) of
        {ok, Stream} -> macula_quic:send(Stream, Frame) =:= ok andalso given(Numbers);
        {error, _} -> refused
    catch
        exit:_ -> refused
    end.

given(Numbers) ->
    atomics:add(Numbers, 2, 1),
    true.

%% Calls and does not send: what a caller sent that was killed, nobody could count.
mortal(Targets) -> spawn(fun() -> call_for_ever(Targets) end).

call_for_ever(Targets) ->
    {NodeId, Address} = pick(Targets),
    _ = call(NodeId, Address),
    timer:sleep(1),
    call_for_ever(Targets).

call(NodeId, Address) ->
    try
        ?POOL:get_or_create_connection(?POOL, NodeId, Address)
    catch
        exit:_ -> refused
    end.

largest(Watch) ->
    Watch ! {stop, self()},
    receive
        {Watch, Largest} -> Largest
    end.

watch_size(Largest) ->
    receive
        {stop, From} -> From ! {self(), Largest}
    after 2 ->
        try ?POOL:pool_size(?POOL) of
            Size -> watch_size(max(Size, Largest))
        catch
            exit:_ -> watch_size(Largest)
        end
    end.

pick(List) -> lists:nth(rand:uniform(length(List)), List).

%%% A node that listens: on `macula-mesh/1', which the peers of other programs do not speak

%% The port it listens at. Each frame's number is appended to the file `Log', as peers do.
listen(CertFile, KeyFile, Log, Options) ->
    Self = self(),
    Node = spawn(fun() -> begin_node(Self, CertFile, KeyFile, Log, Options) end),
    receive
        {Node, Port} -> Port
    end.

%% The listener reads its certificate anew.
renew() ->
    ?NODE ! {renew, self()},
    receive
        {?NODE, Outcome} -> Outcome
    end.

begin_node(Starter, CertFile, KeyFile, Log, More) ->
    true = register(?NODE, self()),
    Options = [{certfile, CertFile}, {keyfile, KeyFile} | maps:to_list(More)],
    {ok, Listener} = macula_quic:listen({{127, 0, 0, 1}, 0}, Options),
    {ok, Listener} = macula_quic:async_accept(Listener, #{}),
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    {ok, File} = file:open(Log, [append, raw]),
    Starter ! {self(), Port},
    serve(Listener, File).

serve(Listener, File) ->
    receive
        {quic, new_conn, Connection, _} ->
            _ = macula_quic:handshake(Connection),
            _ = macula_quic:async_accept_stream(Connection, #{}),
            _ = macula_quic:async_accept(Listener, #{});
        {quic, new_stream, Stream, #{conn := Connection}} ->
            _ = macula_quic:async_accept_stream(Connection, #{}),
            _ = macula_quic:setopt(Stream, packet, macula),
            _ = macula_quic:setopt(Stream, active, true);
        {quic, Data, _Stream, _} when is_binary(Data) ->
            ok = file:write(File, [line(Data), $\n]);
        {renew, From} ->
            From ! {?NODE, macula_quic:reload_certificates(Listener)};
        {quic, _What, _Handle, _Detail} ->
            ok
    end,
    serve(Listener, File).

line(<<1, 1, 0, 0, Size:32, Number:64, _/binary>> = Data) when Size >= 8 ->
    case mesh_peer:frame(Number, Size) of
        Data -> integer_to_binary(Number);
        _ -> <<"corrupt">>
    end;
line(_Other) ->
    <<"corrupt">>.
