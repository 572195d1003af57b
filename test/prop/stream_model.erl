%% Streams between a listener's connection and its client's as queues of frames, for PropEr:
%% whatever their ends' modes, whoever owns them, and whoever of these is killed, each frame comes
%% once, whole and in its order, and an end comes behind the last.
-module(stream_model).

-behaviour(proper_statem).

-include_lib("proper/include/proper.hrl").

-export([prop_streams_behave_as_their_model/0]).
-export([initial_state/0, command/1, precondition/2, next_state/3, postcondition/3]).
-export([open/3, send/3, send_finished/2, finish/2, recv/2, recv_nothing/2, mode/3, give/3]).
-export([kill/2]).

-define(STREAMS, 4).
-define(OWNERS, 3).
%% Longer than anything takes: only a failing run waits for it.
-define(DEADLINE_MS, 20_000).
%% How long something that must not come is waited for.
-define(SILENCE_MS, 5).
-define(ENV, {var, env}).

%% One end of a stream: the frames on their way to it, its owner, and how far its sending half is.
-record(tip, {
    coming = [] :: [pos_integer()],
    owner :: pos_integer() | dead,
    sending = open :: open | finished | refused
}).

-record(model, {
    tips = #{} :: #{{pos_integer(), near | far} => #tip{}},
    sent = 0 :: non_neg_integer()
}).

prop_streams_behave_as_their_model() ->
    ?FORALL(
        Commands,
        more_commands(2, commands(?MODULE)),
        begin
            Env = set_up(),
            {History, Model, Result} = run_commands(?MODULE, Commands, [{env, Env}]),
            Left = left(Env, Model, Result),
            ok = tear_down(Env),
            ?WHENFAIL(
                io:format("result ~p~nleft ~p~nmodel ~p~nhistory ~p~n", [
                    Result, Left, Model, History
                ]),
                aggregate(command_names(Commands), Result =:= ok andalso Left =:= [])
            )
        end
    ).

%%% The commands

initial_state() -> #model{}.

command(#model{tips = Tips} = Model) ->
    Count = map_size(Tips) div 2,
    Open = {call, ?MODULE, open, [?ENV, Count + 1, oneof([client, server])]},
    Kill = {call, ?MODULE, kill, [?ENV, integer(1, ?OWNERS)]},
    OfTips = [
        {8, send, [integer(0, 20_000)]},
        {1, send_finished, []},
        {8, recv, []},
        {1, recv_nothing, []},
        {4, mode, [boolean()]},
        {4, give, [integer(1, ?OWNERS)]},
        {1, finish, []}
    ],
    frequency(
        [{2, Open} || Count < ?STREAMS] ++ [{1, Kill}] ++
            [
                {Weight, {call, ?MODULE, Command, [?ENV, oneof(Keys) | Arguments]}}
             || {Weight, Command, Arguments} <- OfTips,
                Keys <- [possible(Command, Model)],
                Keys =/= []
            ]
    ).

%% The ends with which this can be done.
possible(Command, #model{tips = Tips} = Model) ->
    [Key || Key <- maps:keys(Tips), precondition(Model, {call, ?MODULE, Command, [?ENV, Key]})].

precondition(#model{tips = Tips}, {call, _, open, [_, Number, _]}) ->
    Number =< ?STREAMS andalso Number =:= map_size(Tips) div 2 + 1;
precondition(_Model, {call, _, kill, _}) ->
    true;
precondition(Model, {call, _, Command, [_, Key | _]}) ->
    case Model#model.tips of
        #{Key := #tip{owner = dead}} -> false;
        #{Key := Tip} -> is_possible(Command, Tip, has_end(Key, Model));
        #{} -> false
    end.

is_possible(send, #tip{sending = Sending}, _HasEnd) -> Sending =:= open;
is_possible(send_finished, #tip{sending = Sending}, _HasEnd) -> Sending =:= finished;
is_possible(finish, #tip{sending = Sending}, _HasEnd) -> Sending =:= open;
is_possible(recv, #tip{coming = Coming}, HasEnd) -> Coming =/= [] orelse HasEnd;
is_possible(recv_nothing, #tip{coming = Coming}, HasEnd) -> Coming =:= [] andalso not HasEnd;
is_possible(_Command, _Tip, _HasEnd) -> true.

%% Whether no more is sent to this end than is on its way.
has_end({Number, Side}, #model{tips = Tips}) ->
    #tip{owner = Owner, sending = Sending} = maps:get({Number, other(Side)}, Tips),
    Owner =:= dead orelse Sending =:= finished.

other(near) -> far;
other(far) -> near.

postcondition(_Model, {call, _, send_finished, _}, Result) -> Result =:= {error, closed};
postcondition(_Model, {call, _, recv_nothing, _}, Result) -> Result =:= {error, timeout};
postcondition(Model, {call, _, recv, [_, Key]}, Result) -> Result =:= next_of(Key, Model);
postcondition(_Model, _Call, Result) -> Result =:= ok.

next_of(Key, #model{tips = Tips}) ->
    case maps:get(Key, Tips) of
        #tip{coming = [Frame | _]} -> {ok, Frame};
        #tip{coming = []} -> {error, closed}
    end.

next_state(#model{tips = Tips} = Model, _Result, {call, _, open, [_, Number, _]}) ->
    New = #{{Number, near} => #tip{owner = 1}, {Number, far} => #tip{owner = 1}},
    Model#model{tips = maps:merge(Tips, New)};
next_state(#model{sent = Sent} = Model, _Result, {call, _, send, [_, {Number, Side}, _]}) ->
    To = {Number, other(Side)},
    Add = fun(#tip{coming = Coming} = Tip) -> Tip#tip{coming = Coming ++ [Sent + 1]} end,
    change(To, Add, Model#model{sent = Sent + 1});
next_state(Model, _Result, {call, _, recv, [_, Key]}) ->
    change(Key, fun(#tip{coming = Coming} = Tip) -> Tip#tip{coming = rest(Coming)} end, Model);
next_state(Model, _Result, {call, _, give, [_, Key, Owner]}) ->
    change(Key, fun(Tip) -> Tip#tip{owner = Owner} end, Model);
next_state(Model, _Result, {call, _, finish, [_, Key]}) ->
    change(Key, fun(Tip) -> Tip#tip{sending = finished} end, Model);
next_state(#model{tips = Tips} = Model, _Result, {call, _, kill, [_, Owner]}) ->
    Dead = [Key || {Key, #tip{owner = Of}} <- maps:to_list(Tips), Of =:= Owner],
    lists:foldl(fun die/2, Model, Dead);
next_state(Model, _Result, _Call) ->
    Model.

%% What this end had queued still goes out; what is sent to it is refused, sooner or later.
die({Number, Side} = Key, Model) ->
    Dead = change(Key, fun(Tip) -> Tip#tip{owner = dead, coming = []} end, Model),
    change({Number, other(Side)}, fun refuse/1, Dead).

refuse(#tip{sending = open} = Tip) -> Tip#tip{sending = refused};
refuse(Tip) -> Tip.

change(Key, Change, #model{tips = Tips} = Model) ->
    Model#model{tips = maps:update_with(Key, Change, Tips)}.

rest([]) -> [];
rest([_ | Rest]) -> Rest.

%%% The commands, carried out

%% A stream begins with its first bytes, so one frame has passed.
open(#{client := Client, server := Server} = Env, Number, Opener) ->
    {From, To} = maps:get(Opener, #{client => {Client, Server}, server => {Server, Client}}),
    {ok, Near} = macula_quic:open_stream(From),
    ok = macula_quic:send(Near, frame(0, 0)),
    {ok, Far} = macula_quic:accept_stream(To, ?DEADLINE_MS),
    {ok, <<1, 0, _/binary>>} = macula_quic:recv(Far, ?DEADLINE_MS),
    _ = put({?MODULE, sent}, sent(0)),
    lists:foreach(
        fun({Side, Stream}) ->
            _ = put({?MODULE, stream, {Number, Side}}, Stream),
            ok = macula_quic:controlling_process(Stream, owner(Env, 1)),
            _ = put({?MODULE, owner, {Number, Side}}, 1)
        end,
        [{near, Near}, {far, Far}]
    ).

send(_Env, Key, Size) ->
    _ = put({?MODULE, sent}, sent(1)),
    macula_quic:send(stream(Key), frame(sent(0), Size)).

send_finished(_Env, Key) -> macula_quic:send(stream(Key), <<"late">>).

recv(Env, Key) -> read(Env, Key, ?DEADLINE_MS).

recv_nothing(Env, Key) -> read(Env, Key, ?SILENCE_MS).

mode(_Env, Key, IsActive) -> macula_quic:setopt(stream(Key), active, IsActive).

give(Env, Key, Owner) ->
    {Stream, To} = {stream(Key), owner(Env, Owner)},
    Former = owner(Env, get({?MODULE, owner, Key})),
    _ = put({?MODULE, owner, Key}, Owner),
    quic_ct:in(Former, fun() -> macula_quic:controlling_process(Stream, To) end).

finish(_Env, Key) -> macula_quic:async_shutdown_stream(stream(Key), 1, 0).

%% Another one takes its place, with nothing.
kill(Env, Owner) ->
    ok = quic_ct:give_up(owner(Env, Owner)),
    _ = put({?MODULE, agent, Owner}, quic_ct:agent()),
    ok.

read(Env, Key, Ms) ->
    Stream = stream(Key),
    Work = fun() -> macula_quic:recv(Stream, Ms) end,
    case quic_ct:in(owner(Env, get({?MODULE, owner, Key})), Work) of
        {ok, <<1, 0, 0, 0, _:32, Frame:64, Filling/binary>>} ->
            Filling = filling(Frame, byte_size(Filling)),
            {ok, Frame};
        Other ->
            Other
    end.

%% What is still on its way when all commands are done, and does not come.
left(Env, #model{tips = Tips}, ok) ->
    [
        {Key, Frame}
     || {Key, #tip{owner = Owner, coming = Coming}} <- maps:to_list(Tips),
        Owner =/= dead,
        Frame <- Coming,
        recv(Env, Key) =/= {ok, Frame}
    ];
left(_Env, _Model, _Failed) ->
    not_looked_for.

set_up() ->
    [erase(Key) || {Key, _} <- get(), is_tuple(Key), element(1, Key) =:= ?MODULE],
    _ = put({?MODULE, sent}, 0),
    [put({?MODULE, agent, N}, quic_ct:agent()) || N <- lists:seq(1, ?OWNERS)],
    Listener = quic_ct:listen(),
    Client = quic_ct:connect(Listener),
    #{listener => Listener, client => Client, server => quic_ct:new_server(Listener)}.

tear_down(#{listener := Listener, client := Client} = Env) ->
    ok = macula_quic:close(Client),
    ok = macula_quic:close(Listener),
    [ok = quic_ct:give_up(owner(Env, N)) || N <- lists:seq(1, ?OWNERS)],
    ok = quic_ct:forget().

stream(Key) -> get({?MODULE, stream, Key}).

owner(_Env, Number) -> get({?MODULE, agent, Number}).

sent(More) -> get({?MODULE, sent}) + More.

frame(Number, Size) ->
    Filling = filling(Number, Size),
    <<1, 0, 0, 0, (8 + Size):32, Number:64, Filling/binary>>.

filling(Number, Size) -> binary:copy(<<Number>>, Size).
